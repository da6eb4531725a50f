"""The tests of this folder on the second engine: `pytest tests/sdk --engine mistralrs`.

Every server of the tests then gets its text models on that engine, if they are of a family that it has; all else stays. What
such a model cannot do is in `CANNOT`, with the answer to whoever asks for it, which `test_second_engine_refusals.py` asserts;
`TESTS` names the tests that need one of these: those that are named alone are run and must fail, of a file that is named as a
whole nothing is run. `CHECKS` is the same for the clients of `test_clients.py`.
"""

import json
import os
import re
import subprocess
import tomllib
from dataclasses import dataclass
from pathlib import Path

import attunelib
import httpx
import pytest

FIXTURES = attunelib.ROOT / "tests" / "fixtures"
FOREIGN = FIXTURES / "second_engine"

# Families of its own that it serves by itself, and families that both engines have, with the class in their config.json.
FAMILIES = ["starcoder2", "glm4"]
SHARED = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
}




@dataclass
class Refusal:
    """What a model of the second engine does not do, and what the answer is."""

    message: str
    """A part of the answer's message."""
    param: str
    """The field that the answer names, where it is in a grader the last part of its path."""
    asks: list
    """Requests that get it: path and body, in which `MODEL`, `FILE` and `FOLDER` stand for what there is."""


LIKENESS = {
    "type": "text_similarity",
    "name": "like",
    "input": "{{sample.output_text}}",
    "reference": "a text",
    "evaluation_metric": "cosine",
    "model": "MODEL",
}
CANNOT = {
    "training": Refusal(
        "runs on the second engine, which does not train",
        "model",
        [
            ("/v1/fine_tuning/jobs", {"model": "MODEL", "training_file": "FILE"}),
            ("/v1/fine_tunes", {"model": "MODEL", "training_file": "FILE"}),
        ],
    ),
    "vectors": Refusal(
        "makes no vectors",
        "model",
        [
            ("/v1/fine_tuning/alpha/graders/validate", {"grader": LIKENESS}),
            ("/v1/evals", {"data_source_config": {"type": "logs"}, "testing_criteria": [{**LIKENESS, "pass_threshold": 0.5}]}),
            ("/v1/embeddings", {"model": "MODEL", "input": "a text"}),
            ("/v1/engines/MODEL/embeddings", {"input": "a text"}),
            ("/v1/rerank", {"model": "MODEL", "query": "a", "documents": ["b"]}),
            ("/v1/score", {"model": "MODEL", "text_1": "a", "text_2": "b"}),
        ],
    ),
    "labels": Refusal("has no classification head", "model", [("/v1/classify", {"model": "MODEL", "input": "a text"})]),
    "adapters": Refusal(
        "which does not give adapters beside the model",
        "base_model_name",
        [("/v1/load_lora_adapter", {"lora_name": "mine", "lora_path": "FOLDER", "base_model_name": "MODEL"})],
    ),
    # Nothing is refused: `cached_tokens` is always 0.
    "cached beginnings of prompts": Refusal("nothing is found in a cache", "", []),
}

# By what they need: tests, or whole files.
TESTS = {
    "training": [
        "test_attached_evals.py",
        "test_bad_training_files.py",
        "test_canary.py",
        "test_checkpoints.py",
        "test_classification.py",
        "test_crashes.py",
        "test_distillation.py",
        "test_embedding_tunes.py",
        "test_estimates.py",
        "test_evaluation.py",
        "test_experts.py",
        "test_export.py",
        "test_fine_tunes.py",
        "test_fine_tuning_jobs.py",
        "test_frozen_workers.py",
        "test_growth.py",
        "test_leases.py",
        "test_mixed_batches.py",
        "test_move_in_whole.py",
        "test_permissions.py",
        "test_preferences.py",
        "test_watch.py",
        "test_webhooks.py",
        "test_ui_fine_tunes.py",
        "test_ui_new.py",
        "test_aliases.py::test_a_fine_tune_of_an_alias_goes_by_the_alias",
        "test_aliases.py::test_a_name_that_another_service_gave_leads_to_a_model_here",
        "test_aliases.py::test_an_alias_may_stand_for_a_fine_tuned_model",
        "test_errors.py::test_a_job_fails_with_its_documented_code",
        "test_errors.py::test_a_job_that_does_not_fit_into_memory_fails_as_its_estimate_does",
        "test_errors.py::test_a_wrong_request_gets_its_documented_error[400-invalid_training_file]",
        "test_errors.py::test_classes_that_do_not_fit_fail_a_fine_tune",
        "test_keys.py::test_anothers_thing_is_as_if_it_were_not_there",
        "test_keys.py::test_lists_show_ones_own_things_only",
        "test_keys.py::test_nothing_of_acmes_was_harmed",
        "test_matrix.py::test_a_route_answers_each_caller_with_what_is_its_own",
        "test_matrix.py::test_the_owner_keeps_all_that_others_tried_to_take",
        "test_model_aliases.py::test_a_model_that_an_alias_stands_for_is_deleted_after_the_alias",
        "test_model_aliases.py::test_an_alias_is_set_read_moved_listed_and_deleted",
        "test_model_aliases.py::test_every_route_knows_the_name",
        "test_model_aliases.py::test_fine_tunes_usage_batches_and_evals_know_a_foreign_name",
        "test_model_aliases.py::test_requests_end_on_the_model_that_they_began_with",
        "test_model_aliases.py::test_the_name_of_another_services_model_may_be_an_alias",
        "test_newer_fields.py::test_expired_files_go_unless_a_job_needs_them",
        "test_rendering.py::test_a_job_whose_template_writes_the_time_goes_on_later",
        "test_rendering.py::test_an_answer_is_trained_behind_the_prompt_that_is_served",
        "test_rendering.py::test_the_mark_behind_an_answer_ends_it_where_texts_end_with_another_token",
        "test_requests.py::test_a_boolean_of_the_query_may_be_written_as_any_client_does",
        "test_requests.py::test_an_empty_parameter_of_the_query_is_as_if_absent",
        "test_requests.py::test_every_text_says_that_it_is_utf_8",
        "test_server.py::test_a_job_survives_the_death_of_its_server",
        "test_stored_completions.py::test_stored_answers_become_a_training_file_that_trains",
        "test_tools.py::test_auto_calls_where_the_model_wants_to",
        "test_transport.py::test_a_post_without_content_may_say_that_it_is_json",
        "test_transport.py::test_metadata_is_found_however_the_query_is_written",
        "test_transport.py::test_the_stream_of_a_fine_tunes_events_has_the_same_frames",
        "test_ui_distillation.py::test_a_job_is_started_and_its_page_tells_what_it_cost",
        "test_ui_distillation.py::test_a_job_that_collects_can_be_cancelled_and_shows_that_its_file_is_to_come",
        "test_ui_distillation.py::test_a_model_judges_lines_of_either_kind_but_not_of_both",
        "test_ui_distillation.py::test_ready_made_choices_keep_what_is_right",
        "test_ui_distillation.py::test_stored_chats_are_asked_anew_or_learned_as_they_are",
        "test_ui_distillation.py::test_the_cost_is_told_before_and_nothing_is_asked",
        "test_ui_distillation.py::test_the_first_step_of_a_fine_tune_leads_to_a_form_that_needs_no_script",
        "test_ui_models.py::test_a_model_is_deleted_only_if_it_is_meant",
        "test_ui_models.py::test_a_models_page_says_where_it_comes_from_and_where_it_is",
        "test_ui_models.py::test_others_find_nothing_until_they_may_use_it",
        "test_ui_models.py::test_pages_of_the_list_follow_each_other",
        "test_ui_models.py::test_the_list_has_bases_specialists_and_checkpoints",
        "test_ui_models.py::test_what_a_form_may_not_do_is_said_in_words",
        "test_ui_operations.py::test_it_shows_engines_queue_memory_adapters_and_errors",
        "test_ui_playground.py::test_a_checkpoint_is_asked_like_any_model",
        "test_ui_playground.py::test_a_finished_job_leads_to_its_model_beside_its_base",
        "test_ui_playground.py::test_a_stream_is_the_events_of_the_api",
        "test_ui_playground.py::test_base_and_specialist_answer_side_by_side_as_the_api_does",
        "test_ui_playground.py::test_others_cannot_ask_a_model",
        "test_usage.py::test_a_jobs_tokens_are_charged_to_its_key_once",
        "test_worker.py::test_a_worker_tells_that_it_is_well_and_what_it_trains_and_nothing_else",
        "test_worker.py::test_a_worker_that_hangs_says_that_it_is_stuck_until_it_turns_again",
    ],
    "vectors": [
        "test_embed_command.py",
        "test_embeddings.py",
        "test_ranking_requests.py",
        "test_aliases.py::test_ids_that_the_foreign_tokenizer_does_not_have_are_refused",
        "test_aliases.py::test_ids_under_an_openai_embedding_name_are_those_of_its_tokenizer",
        "test_aliases.py::test_ids_under_other_names_are_the_model_s_own",
        "test_batches.py::test_a_batch_is_answered_as_each_request_alone_would_be[/v1/embeddings]",
        "test_deadlines.py::test_an_answer_that_takes_too_long_is_ended_with_504[embeddings]",
        "test_deadlines.py::test_an_answer_that_takes_too_long_is_ended_with_504[scores]",
        "test_engines.py::test_an_engine_answers_as_the_model_does",
        "test_errors.py::test_a_wrong_request_gets_its_documented_error[400-max_tokens_per_request]",
        "test_full_queue.py::test_a_full_queue_refuses_vectors_and_scores_until_its_clients_go",
        "test_graders.py::test_embeddings_are_compared_by_a_model_of_the_server",
        "test_limits.py::test_a_prompt_larger_than_the_limit_is_refused_for_good",
        "test_ui_playground.py::test_texts_are_compared_by_vectors",
        "test_usage.py::test_sums_are_those_of_the_answers",
    ],
    "adapters": [
        "test_adapter_restart.py",
        "test_adapter_tiers.py",
        "test_load_adapter.py",
        "test_errors.py::test_what_is_no_adapter_is_not_loaded",
        "test_sampling_defaults.py::test_a_fine_tuned_model_has_the_defaults_of_its_base",
        "test_ui_models.py::test_a_name_that_looks_like_html_is_a_name",
    ],
    "cached beginnings of prompts": ["test_prefix_cache.py"],
}

# Of the files that are named as a whole: tests that are run, since they need nothing of it.
ALONE = [
    "test_attached_evals.py::test_what_could_not_be_done_is_refused_when_the_job_is_created",
    "test_checkpoints.py::test_an_unknown_job_has_no_checkpoints",
    "test_classification.py::test_what_cannot_be_measured_is_refused",
    "test_distillation.py::test_what_is_not_applied_is_refused",
    "test_embed_command.py::test_a_busy_server_is_asked_again_and_one_that_says_no_is_not",
    "test_embed_command.py::test_a_killed_run_goes_on_behind_what_it_wrote",
    "test_embed_command.py::test_an_array_of_numpy_holds_the_same_vectors",
    "test_embed_command.py::test_what_is_wrong_with_the_model_is_no_fault_of_a_line",
    "test_fine_tunes.py::test_a_text_that_is_too_long_to_be_stored_is_refused_by_its_name",
    "test_fine_tunes.py::test_an_unknown_fine_tune_is_not_found",
    "test_fine_tuning_jobs.py::test_a_base_model_has_no_adapter",
    "test_fine_tuning_jobs.py::test_a_misspelt_setting_is_refused_with_the_one_that_was_meant",
    "test_fine_tuning_jobs.py::test_a_new_job_on_an_unknown_model_is_refused_and_told_which_there_are",
    "test_fine_tuning_jobs.py::test_a_wrong_field_of_a_new_job_is_named[settings1-suffix]",
    "test_fine_tuning_jobs.py::test_a_wrong_field_of_a_new_job_is_named[settings2-seed]",
    "test_fine_tuning_jobs.py::test_an_unknown_job_is_not_found",
    "test_growth.py::test_ten_thousand_models_are_listed_whole_by_pages",
    "test_load_adapter.py::test_a_name_that_means_something_else_is_refused",
    "test_load_adapter.py::test_an_archive_for_another_purpose_is_refused",
    "test_load_adapter.py::test_an_unknown_adapter_cannot_be_unloaded",
    "test_load_adapter.py::test_missing_fields_are_named",
    "test_prefix_cache.py::test_a_cache_too_small_for_all_changes_no_answer",
    "test_prefix_cache.py::test_it_can_be_switched_off",
    "test_preferences.py::test_a_wrong_setting_is_named",
    "test_ranking_requests.py::test_a_model_without_a_head_classifies_nothing",
    "test_watch.py::test_a_server_that_never_answers_is_given_up",
    "test_webhooks.py::test_a_wrong_setting_ends_the_start_and_shows_no_secret",
    "test_webhooks.py::test_ends_of_batches_of_runs_and_of_responses_are_told",
]

# Files whose tests ask no text model that both engines have: with `--engine mistralrs` they would be the same once more.
SAME = ["test_minilm.py", "test_pull.py", "test_python_graders.py", "test_ranking.py", "test_real_files.py"]

# Checks in `clients/`, by what they need. `test_clients.py` leaves them out, and looks whether each still
# fails with the answer of that.
CHECKS = {
    "training": [
        "litellm/test_litellm.py::test_a_file_becomes_a_model",
        "node/openai.test.mjs::a file from a stream on disk becomes a model",
        "node/openai.test.mjs::a running job is cancelled",
        "openai_0_28/test_command_line.py::test_a_file_that_was_uploaded_before_is_offered_again",
        "openai_0_28/test_command_line.py::test_a_finished_fine_tune_is_shown_and_its_model_answers",
        "openai_0_28/test_command_line.py::test_a_running_fine_tune_is_cancelled",
        "openai_0_28/test_command_line.py::test_events_results_and_list",
        "openai_0_28/test_command_line.py::test_following_a_finished_fine_tune_replays_it",
        "openai_0_28/test_command_line.py::test_the_model_of_a_fine_tune_is_deleted",
        "openai_0_28/test_library.py::test_a_fine_tuned_model_goes_on_learning_and_its_results_can_be_read",
        "openai_0_28/test_library.py::test_the_newer_jobs_are_known_too",
        "openai_1_7/test_openai_1_7.py::test_a_fine_tune_goes_from_file_to_model",
        "openai_1_7/test_openai_1_7.py::test_a_fine_tune_is_cancelled",
    ],
    "vectors": [
        "cohere/test_cohere.py::test_a_model_without_a_head_ranks_by_the_likeness_of_vectors",
        "langchain/test_langchain.py::test_tokens_of_openai_give_the_same_vectors_as_the_text[text-embedding-3-small-256]",
        "langchain/test_standard.py::TestEmbeddingsOfText::test_aembed_documents",
        "langchain/test_standard.py::TestEmbeddingsOfText::test_aembed_query",
        "langchain/test_standard.py::TestEmbeddingsOfText::test_embed_documents",
        "langchain/test_standard.py::TestEmbeddingsOfText::test_embed_query",
        "langchain/test_standard.py::TestEmbeddingsOfTokens::test_aembed_documents",
        "langchain/test_standard.py::TestEmbeddingsOfTokens::test_aembed_query",
        "langchain/test_standard.py::TestEmbeddingsOfTokens::test_embed_documents",
        "langchain/test_standard.py::TestEmbeddingsOfTokens::test_embed_query",
        "litellm/test_litellm.py::test_embeddings",
        "llamaindex/test_llamaindex.py::test_an_index_finds_the_text_that_was_asked_for",
        "llamaindex/test_llamaindex.py::test_texts_become_vectors_in_order",
        "node/openai.test.mjs::an embedding comes packed by default and has the model's width",
        "openai_0_28/test_library.py::test_an_embedding_comes_packed_and_is_unpacked",
        "openai_1_7/test_openai_1_7.py::test_a_vector_is_the_same_in_both_encodings",
        "openai_1_7/test_openai_1_7.py::test_strict_validation_accepts_the_answers",
        "pydantic_ai/test_pydantic_ai.py::test_texts_become_vectors",
        "vercel_ai/vercel_ai.test.mjs::values become vectors in order, over more than one request",
    ],
}


def checks_of(client):
    """The client's checks that ask a model for what it cannot do, by what they need."""
    found = {need: [check for check in checks if check.startswith(f"{client}/")] for need, checks in CHECKS.items()}
    return {need: checks for need, checks in found.items() if checks}


def program():
    """The program of the second engine; `None` if it was not built."""
    named = os.environ.get("ATTUNE_SECOND_ENGINE")
    target = subprocess.run([attunelib.ROOT / "tools" / "target-dir"], capture_output=True, text=True, check=True)
    built = Path(named) if named else Path(target.stdout.strip()) / "mistralrs" / "release" / "attune-mistralrs"
    return built if built.is_file() else None


def entry(name, folder, engine="auto"):
    """A model's table in the configuration."""
    return f'[[models]]\nid = "{name}"\npath = "{folder}"\nengine = "{engine}"\n'


def both_engines(folder):
    """The configuration of a server with models of both engines, written into `folder`: the same ones in each, where both have
    the family, whose tiny checkpoints have the vocabulary of those in `second_engine`."""
    text = f'second_engine = "{program()}"\n'
    text += "".join(entry(name, FOREIGN / name) for name in FAMILIES)
    text += entry("adapted", FOREIGN / "starcoder2") + f'adapter = "{FOREIGN / "starcoder2" / "adapter"}"\n'
    for name in SHARED:
        made = folder / name
        made.mkdir()
        # Beyond a window the second engine has no context.
        config = json.loads((FIXTURES / name / "config_old_style.json").read_text())
        (made / "config.json").write_text(json.dumps({**config, "sliding_window": None, "use_sliding_window": False}))
        (made / "model.safetensors").symlink_to(FIXTURES / name / "model.safetensors")
        (made / "tokenizer.json").symlink_to(FOREIGN / "glm4" / "tokenizer.json")
        text += entry(name, made, "attune") + entry(f"{name}-2", made, "mistralrs")
    text += entry("demo", attunelib.DEMO) + entry("demo-2", attunelib.DEMO, "mistralrs")
    for format in ["q8_0", "q4_k"]:
        text += entry(f"demo-{format}", attunelib.DEMO, "mistralrs") + f'quantize = "{format}"\n'
    settings = folder / "attune.toml"
    settings.write_text(text)
    return settings


def complete(server, model, prompt, **more):
    """The answer to a completion."""
    body = {"model": model, "prompt": prompt, "max_tokens": 16, "temperature": 0, **more}
    answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    return answer.json()


def process_of(server, model):
    """The id of the process that runs `model`; `None` while there is none."""
    command = ["pgrep", "-P", str(server.process.pid), "-f", f"(attune-mistralrs|stand_in_engine.py) {model}$"]
    found = subprocess.run(command, capture_output=True, text=True).stdout.split()
    return int(found[0]) if found else None


def is_shared(path):
    """Whether both engines have the model in this folder."""
    config = attunelib.ROOT / path / "config.json"
    return config.is_file() and (json.loads(config.read_text()).get("architectures") or [""])[0] in SHARED.values()


def moved(arguments, settings):
    """A server's arguments and settings with its models on the second engine."""
    arguments, settings = list(map(str, arguments)), {"ATTUNE_SECOND_ENGINE": str(program()), **(settings or {})}
    named = []
    while "--model" in arguments:
        place = arguments.index("--model")
        name, path = arguments[place + 1].split("=", 1)
        named.append(f"{{id={json.dumps(name)}, path={json.dumps(path)}}}")
        del arguments[place : place + 2]
    models = f"[{', '.join(named)}]" if named else settings.get("ATTUNE_MODELS")
    has_models = False
    if "--config" in arguments:
        place = arguments.index("--config") + 1
        file = Path(arguments[place])
        paths = [model.get("path") for model in tomllib.loads(file.read_text()).get("models", [])]
        has_models = bool(paths)
        copy = file.with_name(f"{file.stem}-mistralrs.toml")
        copy.write_text(on_second_engine(file.read_text(), "[[models]]", "\n{}\n", paths))
        arguments[place] = str(copy)
    if models is None and not has_models:
        models = f'[{{id="demo", path="{attunelib.DEMO}"}}]'
    if models is not None:
        paths = [model.get("path") for model in tomllib.loads(f"models = {models}")["models"]]
        settings["ATTUNE_MODELS"] = on_second_engine(models, "{", "{}, ", paths)
    return arguments, settings


def on_second_engine(text, begin, form, paths):
    """The text with the engine set behind each beginning of a model's table whose path, in the same order, is a model of both."""
    parts = re.split(f"({re.escape(begin)})", text)
    chosen = iter(paths)
    made = parts[0]
    for start, rest in zip(parts[1::2], parts[2::2]):
        path = next(chosen, None)
        is_moved = path and is_shared(path) and "engine" not in rest.split(begin)[0]
        made += start + (form.format('engine = "mistralrs"') if is_moved else "") + rest
    return made


def mark(items):
    """Marks the tests that need what a model of the second engine cannot do."""
    unknown = {name for names in [*TESTS.values(), ALONE, SAME] for name in names}
    for item in items:
        file = item.path.name
        names = {file, f"{file}::{item.originalname}", f"{file}::{item.name}"}
        unknown -= names
        if names & set(SAME):
            item.add_marker(pytest.mark.skip(reason="asks no text model that both engines have"))
        for need, needing in TESTS.items():
            if not names & set(needing) or names & set(ALONE):
                continue
            reason = f"{need}: {CANNOT[need].message}"
            marks = pytest.mark
            item.add_marker(marks.skip(reason=reason) if file in needing else marks.xfail(reason=reason, strict=True))
    # Where only some tests are run, those of the same files may be others.
    whole = {item.path.name for item in items}
    stale = sorted(name for name in unknown if name in whole)
    assert not stale, f"no such test: {stale}"

"""The tests of this folder on the second engine: `pytest tests/sdk --engine mistralrs`.

Every server of the tests then gets its text models on that engine, if they are of a family that it has; all else stays. What
such a model cannot do is in `CANNOT`, with the answer to whoever asks for it, which `test_second_engine_refusals.py` asserts;
`TESTS` names the tests that need one of these: those that are named alone are run and may fail (`-rX` shows the ones that do not),
of a file that is named as a whole nothing is run.
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
    """The field that the answer names."""
    asks: list
    """Requests that get it: path and body, in which `MODEL`, `FILE` and `FOLDER` stand for what there is."""


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
        "makes no vectors on the second engine",
        "model",
        [
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
        "test_permissions.py",
        "test_preferences.py",
        "test_watch.py",
        "test_webhooks.py",
        "test_ui_fine_tunes.py",
        "test_ui_new.py",
        "test_aliases.py::test_a_fine_tune_of_an_alias_goes_by_the_alias",
        "test_aliases.py::test_a_name_that_another_service_gave_leads_to_a_model_here",
        "test_aliases.py::test_an_alias_may_stand_for_a_fine_tuned_model",
        "test_keys.py::test_anothers_thing_is_as_if_it_were_not_there",
        "test_keys.py::test_lists_show_ones_own_things_only",
        "test_keys.py::test_nothing_of_acmes_was_harmed",
        "test_matrix.py::test_a_route_answers_each_caller_with_what_is_its_own",
        "test_matrix.py::test_the_owner_keeps_all_that_others_tried_to_take",
        "test_model_aliases.py::test_a_model_that_an_alias_stands_for_is_deleted_after_the_alias",
        "test_model_aliases.py::test_an_alias_is_set_read_moved_listed_and_deleted",
        "test_model_aliases.py::test_every_route_knows_the_name",
        "test_model_aliases.py::test_requests_end_on_the_model_that_they_began_with",
        "test_rendering.py::test_a_job_whose_template_writes_the_time_goes_on_later",
        "test_rendering.py::test_an_answer_is_trained_behind_the_prompt_that_is_served",
        "test_rendering.py::test_the_mark_behind_an_answer_ends_it_where_texts_end_with_another_token",
        "test_requests.py::test_a_boolean_of_the_query_may_be_written_as_any_client_does",
        "test_requests.py::test_an_empty_parameter_of_the_query_is_as_if_absent",
        "test_requests.py::test_every_text_says_that_it_is_utf_8",
        "test_server.py::test_a_job_survives_the_death_of_its_server",
        "test_tools.py::test_auto_calls_where_the_model_wants_to",
        "test_transport.py::test_a_post_without_content_may_say_that_it_is_json",
        "test_transport.py::test_metadata_is_found_however_the_query_is_written",
        "test_transport.py::test_the_stream_of_a_fine_tunes_events_has_the_same_frames",
        "test_usage.py::test_a_jobs_tokens_are_charged_to_its_key_once",
        "test_worker.py::test_a_worker_tells_that_it_is_well_and_what_it_trains_and_nothing_else",
        "test_worker.py::test_a_worker_that_hangs_says_that_it_is_stuck_until_it_turns_again",
    ],
    "vectors": [
        "test_embed_command.py",
        "test_embeddings.py",
        "test_ranking.py",
        "test_ranking_requests.py",
        "test_aliases.py::test_ids_that_the_foreign_tokenizer_does_not_have_are_refused",
        "test_aliases.py::test_ids_under_an_openai_embedding_name_are_those_of_its_tokenizer",
        "test_aliases.py::test_ids_under_other_names_are_the_model_s_own",
        "test_engines.py::test_an_engine_answers_as_the_model_does",
        "test_limits.py::test_a_prompt_larger_than_the_limit_is_refused_for_good",
        "test_usage.py::test_sums_are_those_of_the_answers",
    ],
    "adapters": ["test_adapter_restart.py", "test_adapter_tiers.py", "test_load_adapter.py"],
    "cached beginnings of prompts": ["test_prefix_cache.py"],
}


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
    unknown = {name for names in TESTS.values() for name in names}
    for item in items:
        file, test = item.path.name, item.originalname
        for refusal, names in TESTS.items():
            found = {file, f"{file}::{test}", f"{file}::{item.name}"} & set(names)
            unknown -= found
            reason = f"{refusal}: {CANNOT[refusal].message}"
            if file in found:
                item.add_marker(pytest.mark.skip(reason=reason))
            elif found:
                item.add_marker(pytest.mark.xfail(reason=reason))
    # Where only some tests are run, those of the same files may be others.
    whole = {item.path.name for item in items}
    stale = sorted(name for name in unknown if name in whole)
    assert not stale, f"no such test: {stale}"

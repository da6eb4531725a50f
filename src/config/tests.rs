use super::*;

fn check(alias: &str, name: &str) -> Result<Config> {
    let models = vec!["demo=somewhere".parse().map_err(Error)?];
    Config { models, aliases: [(alias.into(), name.into())].into(), ..Config::default() }.check()
}

#[test]
fn a_models_precision_is_checked_at_the_start() {
    let check = |text: &str| {
        let models: Vec<ModelEntry> =
            Figment::from(Toml::string(&format!("[[models]]\nid = \"a\"\npath = \"b\"\n{text}")))
                .extract_inner("models")
                .map_err(|error| Error(error.to_string()))?;
        Config { models, ..Config::default() }.check()
    };
    for text in ["", "dtype = \"bf16\"", "quantize = \"q8_0\"", "quantize = \"q4_k\"\ndtype = \"bf16\""] {
        assert!(check(text).is_ok(), "{text}");
    }
    for (text, says) in [
        ("dtype = \"f8\"", "bf16"),
        ("quantize = \"int3\"", "q8_0, q6_k"),
        ("quantize = \"q8_0\"\ndtype = \"bf16\"", "remove one"),
    ] {
        let said = check(text).expect_err("refused").to_string();
        assert!(said.contains(says), "{text}: {said}");
    }
}

/// Reads a configuration as the file has it, and checks it.
fn load(text: &str) -> Result<Config> {
    let folder = tempfile::tempdir().map_err(|error| Error(error.to_string()))?;
    let file = folder.path().join("attune.toml");
    std::fs::write(&file, text).map_err(|error| Error(error.to_string()))?;
    Config::load(Some(&file))?.check()
}

#[test]
fn how_a_model_answers_is_read_and_values_out_of_range_are_named() {
    let model = |text: &str| load(&format!("[[models]]\nid = \"a\"\npath = \"b\"\n{text}"));
    let text = "max_answer_tokens = 100\ngeneration_config = false\nsampling = {temperature = 1, top_k = -1}";
    let config = model(text).expect("fine");
    let entry = &config.models[0];
    assert_eq!((entry.max_answer_tokens, entry.generation_config), (Some(100), false));
    assert_eq!((entry.sampling.temperature, entry.sampling.top_k), (Some(1.0), Some(-1)));
    let silent = model("").expect("fine");
    assert!(silent.models[0].generation_config && silent.models[0].sampling.is_empty());
    for (text, says) in [
        ("sampling = {temperature = 2.1}", "model `a`: sampling.temperature is 2.1, and must be a number from 0 to 2"),
        ("sampling = {temperature = nan}", "sampling.temperature is NaN, and must be a number from 0 to 2"),
        ("sampling = {top_p = -0.1}", "sampling.top_p is -0.1, and must be a number from 0 to 1"),
        ("sampling = {min_p = 1.5}", "sampling.min_p is 1.5, and must be a number from 0 to 1"),
        ("sampling = {top_k = -2}", "sampling.top_k is -2, and must be a whole number"),
        ("sampling = {presence_penalty = 3}", "sampling.presence_penalty is 3, and must be a number from -2 to 2"),
        ("sampling = {frequency_penalty = inf}", "sampling.frequency_penalty is inf, and must be a number from -2"),
        ("sampling = {repetition_penalty = 0}", "sampling.repetition_penalty is 0, and must be a number above 0"),
        ("max_answer_tokens = 0", "max_answer_tokens is 0, and must be a whole number of at least 1"),
        ("max_answer_tokens = -1", "expected a whole number of at least 0"),
        ("sampling = {temperature = \"hot\"}", "found string \"hot\", expected a number"),
        ("sampling = {top_k = 1.5}", "expected a whole number"),
        ("sampling = {temprature = 1}", "Did you mean `temperature`?"),
        ("max_answer_token = 1", "Did you mean `max_answer_tokens`?"),
        ("generation-config = false", "Did you mean `generation_config`?"),
    ] {
        let said = model(text).expect_err(text).to_string();
        assert!(said.contains(says), "{text}: {said}");
    }
    let said = load("[limits]\nmax_wating = 3").expect_err("misspelt").to_string();
    assert!(said.contains("Did you mean `max_waiting`?"), "{said}");
}

#[test]
fn a_price_that_is_none_is_refused() {
    let check = |text: &str| {
        let config = Figment::from(Serialized::defaults(Config::default())).merge(Toml::string(text));
        config.extract::<Config>().map_err(|error| Error(error.to_string()))?.check_prices()
    };
    for text in ["", "[training]\nprice_per_hour = 0.2", "[prices.a]\nprompt = 1.0\ntraining = 0"] {
        assert!(check(text).is_ok(), "{text}");
    }
    for text in [
        "[training]\nprice_per_hour = -1",
        "[training]\nprice_per_hour = inf",
        "[prices.a]\nprompt = nan",
        "[prices.a]\nbatch = -0.5",
    ] {
        assert!(check(text).is_err(), "{text}");
    }
}

#[test]
fn what_is_said_of_trainings_memory_is_read() {
    let read = |text: &str| {
        let options = Figment::from(Toml::string(text)).extract_inner::<TrainingOptions>("training");
        options.map_err(|error| Error(error.to_string()))
    };
    let said =
        read("[training]\nmemory_limit_mib = 2048\nrecomputation = \"full\"").expect("fine").memory(&Limits::default());
    let adapter = Some(Limits::default().adapter_device_mib << 20);
    assert_eq!(said, MemoryBounds { recomputation: Some(Recomputation::Full), limit: Some(2 << 30), adapter });
    let usual = TrainingOptions::default().memory(&Limits::default());
    assert_eq!(usual, MemoryBounds { adapter, ..MemoryBounds::default() });
    let models = vec!["demo=somewhere".parse().expect("a model")];
    let training = TrainingOptions { memory_limit_mib: Some(0), ..TrainingOptions::default() };
    let said = Config { models, training, ..Config::default() }.check().expect_err("refused").to_string();
    assert!(said.contains("memory_limit_mib"), "{said}");
    for text in ["recomputation = \"some\"", "memory_limit_mib = -1", "memory_limit = 1"] {
        assert!(read(&format!("[training]\n{text}")).is_err(), "{text}");
    }
}

#[test]
fn an_alias_leads_to_a_base_or_a_fine_tuned_model_and_hides_neither() {
    for (alias, name) in [
        ("ada", "demo"),
        ("gpt-3.5-turbo", "ft:demo:local::1234abcd"),
        ("a/b c", "demo:ft-org-x"),
        // Names of fine-tuned models of another service.
        ("ft:gpt-4o-mini-2024-07-18:acme:support:9aBcDeFg", "ft:demo:local:support:1234abcd"),
        ("ft:gpt-4o-mini-2024-07-18:acme::9aBcDeFg:ckpt-step-30", "ft:demo:local::1234abcd:ckpt-step-3"),
        ("curie:ft-acme-2022-02-15-04-21-04", "demo"),
    ] {
        assert!(check(alias, name).is_ok(), "{alias} = {name}");
    }
    for (alias, name) in [
        ("demo", "demo"),
        ("ada", "none"),
        ("ada", "ada"),
        ("", "demo"),
        (" ada", "demo"),
        ("a\nb", "demo"),
        ("ft:demo:x::y", "ft:demo:x::y"),
        ("ada:ft-x", "none"),
    ] {
        let said = check(alias, name).expect_err("refused").to_string();
        assert!(said.starts_with("aliases: "), "{alias} = {name}: {said}");
    }
}

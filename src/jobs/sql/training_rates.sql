-- Training rates: how fast a machine has trained a base model, by setup.
select setup, tokens, seconds, idle_seconds, spread from training_rates where machine = $1 and model = $2

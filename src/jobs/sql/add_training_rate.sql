-- Add training rate: adds tokens and seconds to what is known of them, which counts for at most $6 seconds.
insert into training_rates as known (machine, model, setup, tokens, seconds) values ($1, $2, $3, $4, $5)
on conflict (machine, model, setup) do update set
    tokens = known.tokens * least(1, $6 / known.seconds) + excluded.tokens,
    seconds = known.seconds * least(1, $6 / known.seconds) + excluded.seconds,
    updated_at = now()

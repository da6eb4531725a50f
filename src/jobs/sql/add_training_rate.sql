-- Add training rate: adds tokens and seconds to what is known of them, which counts for at most $8 seconds.
insert into training_rates as known (machine, model, setup, tokens, seconds, idle_seconds, spread)
values ($1, $2, $3, $4, $5, $6, $7)
on conflict (machine, model, setup) do update set
    tokens = known.tokens * least(1, $8 / known.seconds) + excluded.tokens,
    seconds = known.seconds * least(1, $8 / known.seconds) + excluded.seconds,
    idle_seconds = known.idle_seconds * least(1, $8 / known.seconds) + excluded.idle_seconds,
    spread = (known.spread * least(known.seconds, $8) + excluded.spread * excluded.seconds)
        / (least(known.seconds, $8) + excluded.seconds),
    updated_at = now()

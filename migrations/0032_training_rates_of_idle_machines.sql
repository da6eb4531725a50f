-- Rates of a machine with nothing else to do, beside what the clock on the wall said. What was measured before does not tell
-- whether the machine was busy: it is measured anew.

delete from training_rates;
alter table training_rates
    add column idle_seconds float8 not null check (idle_seconds > 0),   -- the same steps on a machine with nothing else to do
    add column spread       float8 not null check (spread >= 0);        -- share by which the rate may be wrong

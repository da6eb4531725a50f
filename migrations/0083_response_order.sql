-- Responses of one moment have an order: that in which they were kept. Those of before have whole seconds as their time, and
-- come in the order in which the table holds them.
alter table responses add column seq bigint generated always as identity;

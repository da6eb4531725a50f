-- The use of models in slots of five minutes, kept for a day: the last hour and day of a model on the page. `usage_daily`
-- holds the sums that are paid for.

create table usage_recent (
    organization      text        not null,
    model             text        not null,                     -- as asked for
    slot              timestamptz not null,                     -- when its five minutes began
    requests          bigint      not null,
    prompt_tokens     bigint      not null,                     -- cached ones included
    completion_tokens bigint      not null,
    primary key (organization, model, slot)
);
create index usage_recent_ended on usage_recent (slot);

-- Names that an organisation gives models, and moves from one to another.

create table model_aliases (
    organization text        not null,
    name         text        not null,
    model        text        not null,                  -- a base model, or a fine-tuned one that the organisation may use
    previous     text,                                  -- what it stood for before it was last moved
    created_at   timestamptz not null default now(),
    updated_at   timestamptz not null default now(),    -- of the last move
    primary key (organization, name)
);
create index model_aliases_of_model on model_aliases (organization, model);

-- Which alias of its owner stands for a model, null if none does. Volatile as `job_from_model` is: a deletion locks the
-- model's row first and asks then, and an alias is moved only while it holds that row.
create function alias_of_model(p_organization text, p_model text) returns text language plpgsql volatile as $$
begin
    return (select name from model_aliases where organization = p_organization and model = p_model order by name limit 1);
end $$;

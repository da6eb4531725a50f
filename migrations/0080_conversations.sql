-- Conversations: items that responses go on from, and to which they add their own.

create table conversations (
    id           text        primary key,                    -- conv_…
    organization text        not null,
    metadata     jsonb       not null default '{}',
    created_at   timestamptz not null default now(),
    used_at      timestamptz not null default now()          -- when it was made or last added to
);
create index conversations_old on conversations (used_at);

create table conversation_items (
    conversation text   not null references conversations on delete cascade,
    seq          bigint generated always as identity,        -- the order of the items
    id           text   not null,
    item         text   not null,                            -- JSON, as text: an item may hold a NUL, which jsonb refuses
    primary key (conversation, seq),
    unique (conversation, id)
);
create index conversation_items_found on conversation_items (id);

-- Adds items to a conversation, those with an id that it has already excepted; whether there is such a conversation. Strict,
-- so that a response of none adds nothing.
create function add_to_conversation(p_organization text, p_conversation text, p_ids text[], p_items text[])
returns boolean language plpgsql volatile strict as $$
begin
    -- The lock keeps what is added together in one piece, in the order in which the additions come.
    update conversations set used_at = now() where id = p_conversation and organization = p_organization;
    if not found then
        return false;
    end if;
    insert into conversation_items (conversation, id, item)
    select p_conversation, new.id, new.item
      from unnest(p_ids, p_items) with ordinality as new (id, item, place) order by new.place
        on conflict (conversation, id) do nothing;
    return true;
end $$;

-- What a response read: the conversation, up to its item with this number.
alter table responses
    add column conversation     text,
    add column conversation_end bigint;

-- Chats that clients asked to store, and files that expire.

create table stored_completions (
    id           text        primary key,                       -- chatcmpl-…
    organization text        not null,
    model        text        not null,                          -- as asked for
    created_at   timestamptz not null,                          -- of the answer
    seq          bigint      generated always as identity,      -- the order of those of one second
    metadata     jsonb       not null default '{}',
    -- `json` keeps texts as they are; `jsonb` takes no NUL, which a model may write.
    completion   json        not null,                          -- the answer's object, without its metadata
    messages     json        not null,                          -- the request's messages
    bytes        bigint      not null                           -- of both
);
create index stored_completions_listed on stored_completions (organization, created_at, seq);
create index stored_completions_metadata on stored_completions using gin (metadata jsonb_path_ops);
create index stored_completions_old on stored_completions (created_at);

-- Null: the file stays until it is deleted.
alter table files add column if not exists expires_at timestamptz;
create index if not exists files_expired on files (expires_at) where expires_at is not null;

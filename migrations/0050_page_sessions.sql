-- Who is signed in to the page. A row says which key a session stands for; whether the key still counts is asked anew at
-- each request. Neither the token of a session nor a key can be read from it.

create table page_sessions (
    hash       bytea       primary key,                         -- SHA-256 of the token
    key        bytea       not null,                            -- see `store/page_sessions.rs`
    configured boolean     not null,                            -- a key of the configuration, not of `api_keys`
    created_at timestamptz not null default now(),
    expires_at timestamptz not null
);
create index page_sessions_ended on page_sessions (expires_at);
create index page_sessions_of_key on page_sessions (key, created_at);

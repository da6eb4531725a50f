-- Answers of /v1/responses that are kept, and those that wait or are being written for nobody in particular (background).
-- JSON is kept as text: an answer may hold a NUL, which jsonb refuses.

create table responses (
    id           text        primary key,
    organization text        not null,
    key          text        not null,                 -- id of the key that asked, and pays
    created_at   timestamptz not null default now(),
    status       text        not null check (status in
                     ('queued', 'in_progress', 'completed', 'incomplete', 'failed', 'cancelled')),
    background   boolean     not null,
    streamed     boolean     not null,                 -- background: its events are kept
    previous     text,                                 -- the response that it goes on from; that may be deleted
    input        text        not null,                 -- items of the request: a JSON array
    output       text        not null,                 -- items of the answer: a JSON array
    item_ids     text[]      not null,                 -- ids of both
    response     text        not null,                 -- the object as clients read it
    request      text,                                 -- background: the body to run; null once it has ended
    attempt      int         not null default 0,       -- the fence: whoever writes names it
    told         int         not null default 0,       -- events that are kept
    losses       int         not null default 0,       -- attempts whose process stopped
    lease_until  timestamptz,
    due_at       timestamptz not null default now()    -- background: not before this
);
create index responses_old on responses (created_at) where status not in ('queued', 'in_progress');
create index responses_items on responses using gin (item_ids);
create index responses_unfinished on responses (due_at, created_at) where status in ('queued', 'in_progress');

-- Events of background responses that are streamed, for readers that come later or come back.
create table response_events (
    response text not null references responses on delete cascade,
    sequence int  not null,
    kind     text not null,
    event    text not null,
    primary key (response, sequence)
);

-- Files that arrive in parts. An upload that is not completed within an hour has expired; its parts are swept.

create table uploads (
    id           text        primary key,                       -- upload_…
    organization text        not null,
    filename     text        not null,
    purpose      text        not null,
    bytes        bigint      not null check (bytes >= 0),       -- of the whole file, as announced
    status       text        not null default 'pending' check (status in ('pending', 'completed', 'cancelled')),
    file         text,                                          -- file-…, which may be deleted by now
    created_at   timestamptz not null default now(),
    expires_at   timestamptz not null default now() + interval '1 hour',
    constraint file_iff_completed check ((file is not null) = (status = 'completed'))
);
create index uploads_ended on uploads (expires_at);

-- A part's content is the blob uploads/{upload}/{id}.
create table upload_parts (
    id         text        primary key,                         -- part_…
    upload     text        not null references uploads on delete cascade,
    bytes      bigint      not null check (bytes > 0),
    created_at timestamptz not null default now()
);
create index upload_parts_of_upload on upload_parts (upload);

-- Whether an upload has fewer than `p_most` parts, of no more than `p_bytes` bytes. In plpgsql and volatile, so that the
-- answer rests on what was committed when it is asked, while the upload's row is locked.
create function room_for_part(p_upload text, p_most bigint, p_bytes bigint) returns boolean
language plpgsql volatile as $$
begin
    return (select count(*) < p_most and coalesce(sum(bytes), 0) <= p_bytes from upload_parts where upload = p_upload);
end $$;

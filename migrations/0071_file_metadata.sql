-- Notes that clients put on files. Null: none.
alter table files add column if not exists metadata jsonb;

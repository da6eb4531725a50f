-- Seconds that a file stays which an upload or a batch will make; null: until it is deleted.
alter table uploads add column file_lifetime bigint;
alter table batches add column output_lifetime bigint;

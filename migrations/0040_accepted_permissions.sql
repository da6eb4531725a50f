-- A model that another organisation shares is listed once it was asked for by its name: nobody can put names into the
-- lists of others. Permissions of before were listed, and stay so.

alter table model_permissions add column accepted_at timestamptz;
update model_permissions set accepted_at = created_at;

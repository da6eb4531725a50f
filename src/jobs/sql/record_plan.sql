-- Record plan: the settings that an attempt trains with, and when it expects to finish.
update jobs set resolved = $3, estimated_finish = $4 where key = $1 and attempt = $2 and status = 'running'

-- Collection, answers: what has been asked for the job $1 so far.
select prompt, sample, cost, answer, finish_reason, prompt_tokens, completion_tokens, verdict, score
  from teacher_answers where job = $1 order by prompt, sample

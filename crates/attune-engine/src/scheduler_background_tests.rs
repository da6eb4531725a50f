//! Sequences in the background: whatever somebody waits for goes first, takes what they hold, and is hardly slower for
//! them; they go on all the same.

use super::*;

fn background(number: usize, prompt: usize, max_tokens: usize) -> NewSequence<Client> {
    NewSequence { background: true, ..answer(number, prompt, max_tokens) }
}

/// Composes and computes a step at the time `now`.
fn step_at(scheduler: &mut Scheduler<Client>, now: Instant) -> Vec<(usize, usize)> {
    let step = scheduler.compose(now);
    let shares = parts(scheduler, &step);
    scheduler.advance(&step);
    for part in step.parts.iter().filter(|part| part.complete) {
        scheduler.running()[part.sequence].push(9);
    }
    shares
}

#[test]
fn alone_they_fill_half_a_step_and_less_where_others_may_come_again() {
    let mut scheduler = scheduler(8, 64, 100);
    let begin = Instant::now();
    scheduler.submit(background(1, 100, 5));
    assert_eq!(step_at(&mut scheduler, begin), [(1, 32)]);
    scheduler.submit(answer(2, 10, 5));
    assert_eq!(step_at(&mut scheduler, begin), [(2, 10)]);
    end(&mut scheduler, 2);
    assert_eq!(step_at(&mut scheduler, begin + Duration::from_secs(1)), [(1, 2)]);
    assert_eq!(step_at(&mut scheduler, begin + Duration::from_secs(7)), [(1, 32)]);
}

#[test]
fn beside_others_they_have_a_few_rows_in_some_steps_and_go_on() {
    let mut scheduler = scheduler(8, 128, 1000);
    for number in 1..=4 {
        scheduler.submit(background(number, 4, 100));
    }
    run_step(&mut scheduler);
    scheduler.submit(answer(9, 4, 1000));
    let steps: Vec<usize> = (0..32).map(|_| run_step(&mut scheduler).len() - 1).collect();
    assert_eq!(steps.iter().filter(|others| **others > 0).count(), 4, "{steps:?}");
    assert!(steps.iter().all(|others| *others <= 2), "{steps:?}");
}

#[test]
fn others_are_admitted_before_them_and_take_their_places() {
    let mut scheduler = scheduler(2, 64, 100);
    for number in 1..=3 {
        scheduler.submit(background(number, 4, 50));
    }
    assert_eq!(run_step(&mut scheduler), [(1, 4), (2, 4)]);
    scheduler.submit(answer(8, 4, 50));
    scheduler.submit(answer(9, 4, 50));
    assert_eq!(run_step(&mut scheduler), [(8, 4), (9, 4)]);
    assert_eq!((scheduler.running_count(), scheduler.waiting_count()), (2, 3));
    // A third one waits, and those in the background behind it.
    scheduler.submit(answer(10, 4, 50));
    end(&mut scheduler, 8);
    run_step(&mut scheduler);
    let running: Vec<usize> = scheduler.running().iter().map(|sequence| sequence.owner.number).collect();
    assert_eq!(running, [9, 10]);
    end(&mut scheduler, 9);
    end(&mut scheduler, 10);
    assert!(scheduler.is_background_only());
    // Who was put aside goes on from its tokens.
    assert_eq!(run_step(&mut scheduler)[0].0, 1);
}

#[test]
fn others_take_their_blocks() {
    let mut scheduler = scheduler(8, 512, 8);
    scheduler.submit(background(1, 3 * BLOCK_TOKENS, 50));
    scheduler.submit(background(2, BLOCK_TOKENS, 50));
    run_step(&mut scheduler);
    scheduler.submit(answer(9, 7 * BLOCK_TOKENS, 5));
    assert_eq!(run_step(&mut scheduler), [(9, 7 * BLOCK_TOKENS)]);
    assert_eq!(scheduler.running_count(), 1);
    end(&mut scheduler, 9);
    assert_eq!(run_step(&mut scheduler)[0].0, 1);
}

#[test]
fn they_never_wait_too_long_and_leave_with_their_client() {
    let mut scheduler = scheduler(1, 64, 100);
    let client = Client::new(1);
    let waiting = request(&client, Lane::Answer, 4, 50, None);
    scheduler.submit(NewSequence { background: true, ..waiting });
    let late = Instant::now() + Duration::from_hours(20);
    assert!(scheduler.sweep(late).is_empty());
    assert_eq!(step_at(&mut scheduler, late), [(1, 4)]);
    assert!(scheduler.sweep(late).is_empty());
    client.leave();
    assert!(scheduler.sweep(late).is_empty());
    assert!(scheduler.is_idle());
}

#[test]
fn an_organisation_with_some_has_the_same_share_of_what_others_want() {
    let mut scheduler = scheduler(4, 64, 1000);
    for number in 1..=4 {
        scheduler.submit(background(number, 4, 500));
    }
    for _ in 0..50 {
        run_step(&mut scheduler);
    }
    for number in [10, 11, 12, 13] {
        let organization = if number % 2 == 0 { "org" } else { "other" };
        scheduler.submit(NewSequence { organization: organization.into(), ..answer(number, 4, 500) });
    }
    run_step(&mut scheduler);
    let running: Vec<usize> = scheduler.running().iter().map(|sequence| sequence.owner.number).collect();
    assert_eq!(running, [10, 11, 12, 13], "and in the order of their arrival");
}

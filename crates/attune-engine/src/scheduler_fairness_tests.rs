//! Organisations in the running places, in the rows of a step and in the cache: who comes first, or asks for most,
//! keeps no other waiting for longer than a step, and nothing goes back and forth.

use std::collections::{BTreeMap, HashMap};

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::*;

fn of(organization: &str, new: NewSequence<Client>) -> NewSequence<Client> {
    NewSequence { organization: organization.into(), ..new }
}

fn running_of(scheduler: &Scheduler<Client>, organization: &str) -> usize {
    scheduler.running.iter().filter(|sequence| *sequence.place.organization == *organization).count()
}

#[test]
fn a_request_of_a_thousand_sequences_delays_anothers_token_by_one_step() {
    let mut scheduler = scheduler(64, 512, 100_000);
    for number in 0..1024 {
        scheduler.submit(of("bulk", answer(number, 5, 900)));
    }
    for _ in 0..30 {
        run_step(&mut scheduler);
    }
    assert_eq!(scheduler.running_count(), 64);
    for number in 2000..2020 {
        scheduler.submit(of("other", answer(number, 10, 1)));
        let step = run_step(&mut scheduler);
        assert!(step.contains(&(number, 10)), "{step:?}");
        assert_eq!(step.len(), 64, "the others go on: {step:?}");
        end(&mut scheduler, number);
        run_step(&mut scheduler);
    }
    let happenings = scheduler.take_happenings();
    assert_eq!((happenings.yields, happenings.preemptions), (20, 0));
    assert_eq!(scheduler.running_count(), 64, "who gave its place up has it again");
    assert_eq!(running_of(&scheduler, "bulk"), 64);
    assert!(scheduler.running.is_sorted_by_key(|sequence| sequence.admission));
}

#[test]
fn who_gave_its_place_up_comes_before_all_that_wait_and_finds_its_blocks() {
    let mut scheduler = scheduler(2, 100, 100);
    for number in 0..4 {
        scheduler.submit(of("first", answer(number, 40, 100)));
    }
    for _ in 0..20 {
        run_step(&mut scheduler);
    }
    scheduler.submit(of("second", answer(10, 40, 1)));
    assert_eq!(run_step(&mut scheduler), [(0, 1), (10, 40)], "the youngest of the other gives its place up");
    end(&mut scheduler, 10);
    // 40 of the prompt and 20 drawn; three full blocks are still there.
    assert_eq!(run_step(&mut scheduler), [(0, 1), (1, 12)]);
}

#[test]
fn organizations_with_endless_work_have_equal_places_and_nothing_goes_back_and_forth() {
    let mut scheduler = scheduler(16, 256, 100_000);
    for name in ["a", "b", "c"] {
        for number in 0..100 {
            scheduler.submit(of(name, answer(number, 4, 100_000)));
        }
        run_step(&mut scheduler);
    }
    let places: Vec<_> = ["a", "b", "c"].map(|name| running_of(&scheduler, name)).to_vec();
    assert!(places.iter().all(|places| (5..=6).contains(places)), "{places:?}");
    let yields = scheduler.take_happenings().yields;
    assert!(yields <= 16, "{yields}");
    for _ in 0..300 {
        assert_eq!(run_step(&mut scheduler).len(), 16);
    }
    let happenings = scheduler.take_happenings();
    assert_eq!((happenings.yields, happenings.preemptions), (0, 0));
}

#[test]
fn sequences_of_one_organization_never_give_places_to_each_other() {
    let mut scheduler = scheduler(2, 100, 1000);
    for number in 0..10 {
        let adapter = ["x", "y"][number % 2];
        scheduler.submit(request(&Client::new(number), Lane::Answer, 4, 1000, Some(adapter)));
    }
    for _ in 0..500 {
        assert_eq!(run_step(&mut scheduler).len(), 2);
    }
    assert_eq!(scheduler.take_happenings().yields, 0);
}

#[test]
fn blocks_are_given_up_for_an_organization_that_has_none() {
    let mut scheduler = scheduler(64, 512, 40);
    for number in 0..30 {
        scheduler.submit(of("bulk", answer(number, 4 * BLOCK_TOKENS, 500)));
    }
    for _ in 0..20 {
        run_step(&mut scheduler);
    }
    assert!(scheduler.running_count() >= 4 && scheduler.running_count() < 10, "the cache is full");
    scheduler.submit(of("other", answer(99, 6 * BLOCK_TOKENS, 2)));
    let step = run_step(&mut scheduler);
    assert!(step.iter().any(|(number, _)| *number == 99), "{step:?}");
    // Growing, the others take blocks from their own.
    for _ in 0..60 {
        let step = run_step(&mut scheduler);
        assert!(step.iter().any(|(number, _)| *number == 99), "{step:?}");
        assert!(step.iter().any(|(number, _)| *number == 0), "the oldest goes on: {step:?}");
    }
}

#[test]
fn nobody_gives_blocks_up_in_vain() {
    let mut scheduler = scheduler(8, 512, 20);
    // They share all but their last block: three that go free only three blocks.
    for _ in 0..4 {
        scheduler.submit(of("bulk", answer(7, 12 * BLOCK_TOKENS + 1, 5)));
    }
    for _ in 0..4 {
        run_step(&mut scheduler);
    }
    assert_eq!((scheduler.running_count(), scheduler.allocator().used()), (4, 16));
    scheduler.submit(of("other", answer(8, 10 * BLOCK_TOKENS, 1)));
    run_step(&mut scheduler);
    assert_eq!((scheduler.running_count(), scheduler.take_happenings().yields), (4, 0));
    // Seven blocks can be had: three of the others', and four that are free.
    scheduler.submit(of("another", answer(9, 6 * BLOCK_TOKENS, 1)));
    run_step(&mut scheduler);
    assert_eq!(scheduler.take_happenings().yields, 0, "it does not overtake who waits for more");
}

#[test]
fn one_sequence_with_the_whole_cache_gives_it_up_after_its_slice_and_gets_it_again() {
    let mut scheduler = scheduler(4, 512, 20);
    scheduler.submit(of("large", answer(1, 10 * BLOCK_TOKENS, 160)));
    for _ in 0..5 {
        run_step(&mut scheduler);
    }
    scheduler.submit(of("other", answer(2, 12 * BLOCK_TOKENS, 100)));
    let steps_until = |scheduler: &mut Scheduler<Client>, number: usize| {
        for steps in 1..200 {
            if run_step(scheduler).iter().any(|(other, _)| *other == number) {
                return steps;
            }
        }
        panic!("{number} never runs");
    };
    // 64 tokens, and an eighth of the prompt.
    assert_eq!(steps_until(&mut scheduler, 2), 64 + 20 - 5 + 1);
    assert_eq!((scheduler.running_count(), scheduler.take_happenings().yields), (1, 1));
    assert_eq!(steps_until(&mut scheduler, 1), 64 + 24);
    assert_eq!(scheduler.take_happenings().yields, 1);
}

#[test]
fn more_organizations_than_places_take_turns() {
    let mut scheduler = scheduler(2, 100, 1000);
    for number in 0..7 {
        scheduler.submit(of(&number.to_string(), answer(number, 10, 100_000)));
    }
    let mut drawn: HashMap<usize, usize> = HashMap::new();
    for _ in 0..7000 {
        for (number, _) in run_step(&mut scheduler) {
            *drawn.entry(number).or_default() += 1;
        }
    }
    // Slices grow with the answers; the lowest counter is next.
    let (least, most) = (drawn.values().min().unwrap(), drawn.values().max().unwrap());
    assert!(drawn.len() == 7 && *most < 2 * *least, "{drawn:?}");
    let yields = scheduler.take_happenings().yields;
    assert!(yields < 2 * 7000 / 64, "{yields}");
}

#[test]
fn organizations_share_the_rows_of_prompts_and_leave_what_they_do_not_need() {
    let mut scheduler = scheduler(8, 100, 1000);
    for number in 0..3 {
        scheduler.submit(of("a", answer(number, 400, 1)));
    }
    scheduler.submit(of("b", answer(10, 400, 1)));
    scheduler.submit(of("c", answer(20, 6, 1)));
    let rows: BTreeMap<usize, usize> = run_step(&mut scheduler).into_iter().collect();
    assert_eq!((rows[&20], rows[&10]), (6, 47));
    assert_eq!(rows.values().sum::<usize>(), 100);
    // Short prompts of one, however many, do not stop the long one of another.
    for number in 100..109 {
        scheduler.submit(of("a", answer(number, 10, 1)));
        run_step(&mut scheduler);
    }
    assert!(scheduler.running.iter().any(|sequence| sequence.owner.number == 10 && sequence.is_answering()));
}

#[test]
fn no_more_run_than_a_step_has_rows() {
    let mut scheduler = scheduler(8, 2, 100);
    for number in 0..6 {
        scheduler.submit(of("bulk", answer(number, 1, 500)));
    }
    for _ in 0..5 {
        run_step(&mut scheduler);
    }
    scheduler.submit(of("other", answer(10, 1, 5)));
    for _ in 0..5 {
        assert!(run_step(&mut scheduler).iter().any(|(number, _)| *number == 10));
    }
}

#[test]
fn under_random_load_of_many_organizations_whoever_waits_has_a_share_and_all_end() {
    const PLACES: usize = 8;
    let mut random = ChaCha8Rng::seed_from_u64(5);
    let mut scheduler = scheduler(PLACES, 64, 10_000);
    let mut left: HashMap<usize, usize> = HashMap::new();
    let (mut yields, mut submitted) = (0, 0);
    for round in 0..100_000 {
        if round < 4000 && random.random_bool(0.3) {
            // The first organisation asks for most.
            let name = if random.random_bool(0.6) { 0 } else { random.random_range(1..6) };
            let count = if name == 0 { random.random_range(1..10) } else { 1 };
            for _ in 0..count {
                let lane = if random.random_bool(0.2) { Lane::Embed } else { Lane::Answer };
                let new = request(&Client::new(submitted), lane, random.random_range(1..60), 100, None);
                left.insert(submitted, random.random_range(1..100));
                scheduler.submit(of(&name.to_string(), new));
                submitted += 1;
            }
        }
        let step = compose(&mut scheduler);
        let mut places: BTreeMap<Arc<str>, usize> = BTreeMap::new();
        for sequence in &scheduler.running {
            *places.entry(sequence.place.organization.clone()).or_default() += 1;
        }
        let waiting = scheduler.waiting.iter().flat_map(|lane| lane.heads().map(|(name, _)| name.clone()));
        let waiting = waiting.chain(scheduler.preempted.iter().map(|sequence| sequence.place.organization.clone()));
        let most = places.values().max().copied().unwrap_or(0);
        for name in waiting {
            assert!(most <= places.get(&name).map_or(0, |places| *places) + 1, "{name} waits: {places:?}");
            assert_eq!(scheduler.running.len(), PLACES, "{name} waits beside a free place");
        }
        assert!(step.parts.len() <= PLACES);
        scheduler.advance(&step);
        let mut ended = Vec::new();
        for part in step.parts.iter().filter(|part| part.complete) {
            let sequence = &mut scheduler.running()[part.sequence];
            let left = left.get_mut(&sequence.owner.number).unwrap();
            *left -= 1;
            if *left == 0 || sequence.owner.lane == Lane::Embed {
                ended.push(part.sequence);
            } else {
                sequence.push(9);
            }
        }
        scheduler.remove(ended);
        yields += scheduler.take_happenings().yields;
        if round > 4000 && scheduler.is_idle() {
            break;
        }
    }
    assert!(scheduler.is_idle(), "{} wait, {} run", scheduler.waiting_count(), scheduler.running_count());
    assert!(submitted > 2000 && yields > 100, "{submitted} submitted, {yields} places given up");
    assert_eq!(scheduler.allocator().used(), 0);
}

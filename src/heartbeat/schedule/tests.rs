use super::*;

fn view(now: Instant, token: Option<Lifetime>) -> View {
    View { now, token, lease_end: None, suspended: Duration::ZERO }
}

/// A beat that succeeded.
fn beaten(cause: Cause, began: Instant, now: Instant, jitter: f64) -> Beaten {
    Beaten { cause, began, now, failed: false, asked_wait: None, lease_end: None, jitter }
}

fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

#[test]
fn missed_ticks_are_skipped() {
    let start = Instant::now();
    // How long the beat at 0 took, and the time of the next beat.
    for (took, next) in [(0.0, 10.0), (9.9, 10.0), (10.0, 20.0), (10.1, 20.0), (95.0, 100.0)] {
        let mut schedule = Schedule::new(start, seconds(10.0), None, None);
        assert_eq!(schedule.due(&view(start, None)), Due { at: start, cause: Cause::Tick });
        schedule.beaten(&beaten(Cause::Tick, start, start + seconds(took), 0.0));
        assert_eq!(schedule.due(&view(start, None)).at, start + seconds(next), "after {took} s");
    }
}

#[test]
fn jitter_is_early_by_at_most_a_twentieth() {
    let start = Instant::now();
    for (jitter, next) in [(0.0, 20.0), (0.5, 19.75), (1.0, 19.5), (7.0, 19.5)] {
        let mut schedule = Schedule::new(start, seconds(10.0), None, None);
        schedule.beaten(&beaten(Cause::Tick, start, start, 0.0));
        // A beat before its tick does not repeat the same tick.
        schedule.beaten(&beaten(Cause::Tick, start + seconds(9.5), start + seconds(9.6), jitter));
        assert_eq!(schedule.due(&view(start, None)).at, start + seconds(next), "jitter {jitter}");
    }
}

#[test]
fn a_beat_that_was_asked_for_moves_no_tick() {
    let start = Instant::now();
    for (began, over, next) in [(3.0, 4.0, 10.0), (9.9, 10.1, 20.0), (9.9, 31.0, 40.0)] {
        let mut schedule = Schedule::new(start, seconds(10.0), None, None);
        schedule.beaten(&beaten(Cause::Tick, start, start, 0.0));
        schedule.beaten(&beaten(Cause::Now, start + seconds(began), start + seconds(over), 1.0));
        let due = schedule.due(&view(start, None)).at;
        let early = start + seconds(next) - due;
        assert!(
            early <= seconds(0.5),
            "asked for at {began}, over at {over}: next at {:?}",
            due - start
        );
    }
}

#[test]
fn two_beats_fall_into_the_window() {
    let start = Instant::now();
    let token = Lifetime { from: start, until: start + seconds(10.0) };
    // The columns: the last beat, now, and the next beat with a tick at 9. `None` means the tick.
    let table = [
        (0.0, 0.1, Some(8.5)),
        (8.4, 8.4, Some(8.5)),
        (8.5, 8.5, None),
        (8.6, 8.6, None),
        (8.4, 8.8, Some(8.5)),
        (8.4, 10.0, None),
    ];
    for (last, now, next) in table {
        let mut schedule = Schedule::new(start, seconds(9.0), None, Some(0.8));
        schedule.beaten(&beaten(Cause::Tick, start + seconds(last), start + seconds(last), 0.0));
        schedule.tick = start + seconds(9.0);
        schedule.planned = schedule.tick;
        let due = schedule.due(&view(start + seconds(now), Some(token)));
        let expected = match next {
            Some(at) => Due { at: start + seconds(at), cause: Cause::Window },
            None => Due { at: start + seconds(9.0), cause: Cause::Tick },
        };
        assert_eq!(due, expected, "last {last}, now {now}");
    }
}

#[test]
fn a_tick_in_the_window_stays_a_tick() {
    let start = Instant::now();
    let token = Lifetime { from: start, until: start + seconds(10.0) };
    let mut schedule = Schedule::new(start, seconds(8.5), None, Some(0.8));
    schedule.beaten(&beaten(Cause::Tick, start, start, 0.0));
    assert_eq!(
        schedule.due(&view(start, Some(token))),
        Due { at: start + seconds(8.5), cause: Cause::Tick }
    );
}

#[test]
fn a_moved_beat_moves_the_following_ones() {
    let start = Instant::now();
    let token = Lifetime { from: start, until: start + seconds(10.0) };
    let mut schedule = Schedule::new(start, seconds(9.0), None, Some(0.8));
    schedule.beaten(&beaten(Cause::Tick, start, start, 0.0));
    let moved = start + seconds(8.5);
    assert_eq!(schedule.due(&view(start, Some(token))), Due { at: moved, cause: Cause::Window });
    schedule.beaten(&beaten(Cause::Window, moved, moved, 0.0));
    assert_eq!(schedule.due(&view(moved, None)).at, start + seconds(17.5));
    // The beat brought no new token, so there is another one before the expiry.
    assert_eq!(
        schedule.due(&view(moved, Some(token))),
        Due { at: start + seconds(9.25), cause: Cause::Window }
    );
}

#[test]
fn without_a_window_there_are_only_ticks() {
    let start = Instant::now();
    let token = Some(Lifetime { from: start, until: start + seconds(10.0) });
    for (window, lifetime) in [(None, token), (Some(0.8), None)] {
        let mut schedule = Schedule::new(start, seconds(9.0), None, window);
        schedule.beaten(&beaten(Cause::Tick, start, start, 0.0));
        assert_eq!(
            schedule.due(&view(start, lifetime)),
            Due { at: start + seconds(9.0), cause: Cause::Tick }
        );
    }
}

#[test]
fn odd_periods_neither_panic_nor_spin() {
    let start = Instant::now();
    for every in [Duration::from_nanos(1), Duration::MAX] {
        let mut schedule = Schedule::new(start, every, None, Some(0.999));
        schedule.beaten(&beaten(Cause::Tick, start, start, 1.0));
        let lifetime = Lifetime { from: start, until: start + Duration::from_nanos(3) };
        let due = schedule.due(&view(start, Some(lifetime)));
        assert!(due.at > start, "{every:?}");
        assert!(due.cause == Cause::Tick || due.at == start + CLOSEST, "{every:?}");
        // A period beyond the range of the clock is very long, not short.
        let year = Duration::from_secs(365 * 86_400);
        assert_eq!(schedule.due(&view(start, None)).at > start + 9 * year, every == Duration::MAX);
    }
}

#[test]
fn a_slow_beat_does_not_count_in_the_window() {
    let start = Instant::now();
    let at = |second| start + seconds(second);
    let token = Some(Lifetime { from: start, until: at(10.0) });
    let mut schedule = Schedule::new(start, seconds(100.0), None, Some(0.8));
    // The beat starts before the window, which is from 8 to 10, and ends after the place at 8.5.
    schedule.beaten(&beaten(Cause::Tick, at(7.0), at(8.7), 0.0));
    assert_eq!(schedule.due(&view(at(8.7), token)), Due { at: at(8.5), cause: Cause::Window });
    schedule.beaten(&beaten(Cause::Window, at(8.7), at(8.8), 0.0));
    assert_eq!(schedule.due(&view(at(8.8), token)), Due { at: at(9.25), cause: Cause::Window });
}

/// A beat at 0, and its consequences.
struct Case {
    failed: bool,
    asked: Option<f64>,
    /// The length and the end of the lease.
    lease: Option<(f64, f64)>,
    window: Option<f64>,
    expected: (f64, Cause),
}

#[test]
fn what_wins_where_the_rules_disagree() {
    let start = Instant::now();
    let at = |second: f64| start + seconds(second);
    // A beat at 0 that ends at once. The period is 100, the lease and the window are as given, and
    // the token lives from 0 to 100.
    let row = |failed, asked, lease, window, at, cause| Case {
        failed,
        asked,
        lease,
        window,
        expected: (at, cause),
    };
    let (tick, retry, place, asked) = (Cause::Tick, Cause::Retry, Cause::Window, Cause::Asked);
    let table = [
        // After a success the lease causes no earlier beat.
        row(false, None, Some((120.0, 120.0)), None, 100.0, tick),
        row(true, None, None, None, 100.0, tick),
        // Half of the remaining lease, but at least a second.
        row(true, None, Some((120.0, 60.0)), None, 30.0, retry),
        row(true, None, Some((120.0, 1.0)), None, 1.0, retry),
        row(true, None, Some((300.0, 300.0)), None, 100.0, tick),
        // The window's first place, if it is sooner than both.
        row(false, None, None, Some(0.8), 85.0, place),
        row(true, None, Some((120.0, 120.0)), Some(0.8), 60.0, retry),
        row(true, None, Some((200.0, 200.0)), Some(0.8), 85.0, place),
        // Retry-After delays the tick, whatever the result of the beat. A shorter one does not.
        row(true, Some(150.0), None, None, 150.0, asked),
        row(false, Some(150.0), None, None, 150.0, asked),
        row(true, Some(50.0), None, None, 100.0, tick),
        // It takes precedence over the retry for the lease, until a third of the lease is left.
        row(true, Some(50.0), Some((120.0, 60.0)), None, 30.0, retry),
        row(true, Some(50.0), Some((120.0, 100.0)), None, 50.0, retry),
        row(true, Some(55.0), Some((120.0, 100.0)), None, 55.0, asked),
        row(true, Some(90.0), Some((120.0, 110.0)), None, 70.0, asked),
        // The beat is in time for the window, at its last place.
        row(true, Some(300.0), None, Some(0.8), 92.5, asked),
        row(true, Some(90.0), None, Some(0.8), 90.0, asked),
        row(true, Some(10.0), None, Some(0.8), 85.0, place),
        // With both limits, the earlier one applies.
        row(true, Some(300.0), Some((90.0, 120.0)), Some(0.8), 90.0, asked),
        row(true, Some(300.0), Some((60.0, 150.0)), Some(0.8), 92.5, asked),
    ];
    for (number, case) in table.iter().enumerate() {
        let lease_end = case.lease.map(|(_, end)| at(end));
        let lease = case.lease.map(|(length, _)| seconds(length));
        let mut schedule = Schedule::new(start, seconds(100.0), lease, case.window);
        schedule.beaten(&Beaten {
            failed: case.failed,
            asked_wait: case.asked.map(seconds),
            lease_end,
            ..beaten(Cause::Tick, start, start, 0.0)
        });
        let token = Some(Lifetime { from: start, until: at(100.0) });
        let due = schedule.due(&View { lease_end, ..view(start, token) });
        let (when, cause) = case.expected;
        assert_eq!(due, Due { at: at(when), cause }, "row {number}");
    }
}

#[test]
fn jitter_brings_no_beat_before_retry_after() {
    let start = Instant::now();
    let mut schedule = Schedule::new(start, seconds(100.0), None, None);
    let wait = Some(seconds(98.0));
    schedule.beaten(&Beaten {
        failed: true,
        asked_wait: wait,
        ..beaten(Cause::Tick, start, start, 1.0)
    });
    assert_eq!(
        schedule.due(&view(start, None)),
        Due { at: start + seconds(98.0), cause: Cause::Asked }
    );
}

#[test]
fn a_requested_wait_holds_until_a_success() {
    let start = Instant::now();
    let mut schedule = Schedule::new(start, seconds(10.0), None, None);
    let first = beaten(Cause::Tick, start, start, 0.0);
    schedule.beaten(&Beaten { failed: true, asked_wait: Some(seconds(60.0)), ..first });
    // `beat_now` ignores it.
    let five = start + seconds(5.0);
    let now = beaten(Cause::Now, five, five, 0.0);
    schedule.beaten(&Beaten { failed: true, ..now });
    assert_eq!(schedule.due(&view(five, None)).at, start + seconds(60.0));
    schedule.beaten(&now);
    assert_eq!(schedule.due(&view(five, None)).at, start + seconds(10.0));
}

#[test]
fn after_a_suspend_a_beat_precedes_expiry() {
    let start = Instant::now();
    let at = |second: f64| start + seconds(second);
    let (second, day) = (seconds(1.0), seconds(86_400.0));
    let from = start.checked_sub(day).unwrap_or(start);
    // The period is 30, the last beat was at 0, and now is 2. The columns: the expiry of the token,
    // how long the machine was suspended, and the next beat.
    let table = [
        // Six seconds are left of a lifetime of a day.
        (8.0, day, 2.0, Cause::Window),
        // Both places are over, and the tick would come after the end.
        (8.0, seconds(100.0), 2.0, Cause::Window),
        // Nothing is left, so no beat can be in time.
        (2.0, day, 30.0, Cause::Tick),
        // The tick comes before the expiry, and both places are over.
        (40.0, second, 30.0, Cause::Tick),
        // The machine was not suspended, so the beat at 0 was in the window.
        (8.0, Duration::ZERO, 30.0, Cause::Tick),
    ];
    for (end, suspended, expected, cause) in table {
        let mut schedule = Schedule::new(start, seconds(30.0), None, Some(0.8));
        schedule.beaten(&beaten(Cause::Tick, start, start, 0.0));
        let token = Some(Lifetime { from, until: at(end) });
        let mut due = schedule.due(&View { suspended, ..view(at(2.0), token) });
        // A missed place is made up at once.
        due.at = due.at.max(at(2.0));
        assert_eq!(due, Due { at: at(expected), cause }, "end {end}, suspended {suspended:?}");
    }
}

#[test]
fn a_server_sets_the_period_within_limits() {
    let table = [
        (30.0, None, 30.0),
        (0.1, None, 1.0),
        (86_400.0, None, 3600.0),
        (30.0, Some(40.0), 20.0),
        (30.0, Some(60.0), 30.0),
        (0.5, Some(1.0), 0.5),
    ];
    for (asked, lease, expected) in table {
        assert_eq!(
            period(seconds(asked), lease.map(seconds)),
            seconds(expected),
            "{asked} {lease:?}"
        );
    }
    let start = Instant::now();
    let mut schedule = Schedule::new(start, seconds(10.0), None, None);
    let two = beaten(Cause::Tick, start + seconds(2.0), start + seconds(2.5), 0.0);
    schedule.beaten(&two);
    schedule.set_every(seconds(30.0), &two);
    assert_eq!(schedule.due(&view(start, None)).at, start + seconds(32.0));
    // The same period again changes nothing.
    let later = beaten(Cause::Tick, start + seconds(31.0), start + seconds(31.0), 0.0);
    schedule.beaten(&later);
    schedule.set_every(seconds(30.0), &later);
    assert_eq!(schedule.due(&view(start, None)).at, start + seconds(62.0));
}

#[test]
fn a_429_counts_after_ten_periods_and_an_hour() {
    let table = [
        (5.0, 3599.0, true),
        (5.0, 3600.0, false),
        (600.0, 3600.0, true),
        (600.0, 5999.0, true),
        (600.0, 6000.0, false),
    ];
    for (every, since, pardoned) in table {
        assert_eq!(is_pardoned(seconds(every), seconds(since)), pardoned, "{every} {since}");
    }
}

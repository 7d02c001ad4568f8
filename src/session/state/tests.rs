//! A table of cases for each decision.

use super::{
    super::{cooldown::cooling_down, decisions::Step},
    *,
};
use crate::time::suspend;

const SECOND: Duration = Duration::from_secs(1);

/// Far enough from the start of the clock to subtract from it.
fn now() -> Instant {
    Instant::now() + 100_000 * SECOND
}

/// A token in the middle of its lifetime, and a refresh token.
fn good(now: Instant) -> State {
    let tokens = Tokens::new("t").unwrap().with_refresh_token("r").unwrap();
    let lifetime = Lifetime { from: now - 50 * SECOND, until: now + 50 * SECOND };
    let mut state = State::new(&tokens, Some(lifetime), Some(now + 40 * SECOND));
    state.renewable = true;
    state.generation = 7;
    state
}

fn expired(now: Instant) -> State {
    let mut state = good(now);
    state.lifetime = Some(Lifetime { from: now - 100 * SECOND, until: now });
    state.due = Some(now - 20 * SECOND);
    state
}

fn without_token(now: Instant) -> State {
    State { access: None, lifetime: None, due: None, ..good(now) }
}

#[expect(clippy::unnecessary_wraps, reason = "as the field has it")]
fn flight() -> Option<Arc<InFlight>> {
    Some(Arc::new(InFlight::new(0, 7)))
}

/// A suspend is applied once, and pauses stay in effect.
#[tokio::test(start_paused = true)]
async fn a_suspend_ends_a_token() {
    let hour = 3600 * SECOND;
    let tokens = Tokens::new("t").unwrap().with_refresh_token("r").unwrap().with_expires_in(hour);
    let lifetime = tokens.lifetime(crate::token::Arrival::Issued);
    let now = Instant::now();
    let mut state = State::new(&tokens, lifetime, Some(now + hour - 60 * SECOND));
    state.renewable = true;
    let read = Now::read;
    suspend(3538 * SECOND);
    assert!(state.is_quiet(Instant::now) && !state.signature().has_expired(read));
    suspend(4 * SECOND);
    assert!(!state.is_quiet(Instant::now) && !state.signature().has_expired(read));
    state.catch_up(read());
    assert_eq!(state.missed(read()), Duration::ZERO);
    assert!(state.is_due(Instant::now()) && !state.is_expired(Instant::now()));
    suspend(2 * hour);
    assert!(state.signature().has_expired(read) && !state.is_expired(Instant::now()));
    // The reported and stored expiry is the time at which the token expired.
    let (told, given) = (state.tokens().expires_at().unwrap(), tokens.expires_at().unwrap());
    assert!(told.duration_since(given).unwrap_or_default() < SECOND, "{told:?} {given:?}");
    state.catch_up(read());
    assert!(state.is_expired(Instant::now()) && state.signature().has_expired(read));
    assert_eq!(state.missed(read()), Duration::ZERO);
}

fn error(kind: ErrorKind) -> Error {
    Error::new(kind, "x")
}

fn cooling(until: Instant) -> Phase {
    Phase::CoolingDown { until, cause: error(ErrorKind::Unavailable) }
}

fn told(step: Step) -> String {
    match step {
        Step::Go => "go".to_owned(),
        Step::GoAndRenew => "renew".to_owned(),
        Step::Wait => "wait".to_owned(),
        Step::Fail(error) => format!("{:?}", error.kind()),
    }
}

#[test]
#[rustfmt::skip]
fn what_each_state_says_to_everybody_who_asks() {
    let now = now();
    let nothing = Phase::CoolingDown { until: now + SECOND, cause: no_token() };
    let dead = || Phase::LoginRequired(error(ErrorKind::LoginRequired));
    let on_arrival = |pause| {
        let end = now - SECOND;
        State { lifetime: Some(Lifetime { from: end, until: end }), due: Some(end), issued_pause: Some(pause), ..good(now) }
    };
    let logged_out = { let mut state = good(now); state.clear(); state };
    // The columns: before sending; after a rejection of the current token and of an earlier one; on
    // demand; when signing; the public state.
    let table = [
        ("good", good(now), "go wait go wait signs Active"),
        ("no refresher", State { renewable: false, ..good(now) }, "go go go LoginRequired signs Active"),
        ("no known end", State { lifetime: None, due: None, ..good(now) }, "go wait go wait signs Active"),
        ("due", State { due: Some(now), ..good(now) }, "renew wait go wait signs Active"),
        ("due a moment later", State { due: Some(now + Duration::from_nanos(1)), ..good(now) }, "go wait go wait signs Active"),
        ("due, no refresher", State { due: Some(now), renewable: false, ..good(now) }, "go go go LoginRequired signs Active"),
        ("due, under way", State { due: Some(now), in_flight: flight(), ..good(now) }, "go wait go wait signs Refreshing"),
        ("due, cooling", State { due: Some(now), phase: cooling(now + SECOND), ..good(now) }, "go CoolingDown go wait signs CoolingDown"),
        ("due, cooled", State { due: Some(now), phase: cooling(now), ..good(now) }, "renew wait go wait signs Active"),
        ("due, dead", State { due: Some(now), phase: dead(), ..good(now) }, "go LoginRequired go LoginRequired signs LoginRequired"),
        ("due, broken", State { due: Some(now), broken_pause: Some(now + SECOND), ..good(now) }, "go wait go wait signs Active"),
        ("due, mended", State { due: Some(now), broken_pause: Some(now), ..good(now) }, "renew wait go wait signs Active"),
        ("rejected, under way", State { rejected: true, in_flight: flight(), ..good(now) }, "wait wait wait wait signs Refreshing"),
        ("dead", State { phase: dead(), ..good(now) }, "go LoginRequired go LoginRequired signs LoginRequired"),
        ("nothing to ask with", State { phase: nothing.clone(), ..good(now) }, "go go go wait signs CoolingDown"),
        ("on trial", State { probation: Some(now + SECOND), ..good(now) }, "go go go wait signs Active"),
        ("trial over", State { probation: Some(now), ..good(now) }, "go wait go wait signs Active"),
        ("expired", expired(now), "wait wait wait wait signs Active"),
        ("expired, no refresher", State { renewable: false, ..expired(now) }, "go go go LoginRequired signs LoginRequired"),
        ("expired, under way", State { in_flight: flight(), ..expired(now) }, "wait wait wait wait signs Refreshing"),
        ("expired, no refresher, under way", State { renewable: false, in_flight: flight(), ..expired(now) }, "wait wait wait wait signs Refreshing"),
        ("expired, dead", State { phase: dead(), ..expired(now) }, "LoginRequired LoginRequired LoginRequired LoginRequired signs LoginRequired"),
        ("expired, cooling", State { phase: cooling(now + SECOND), ..expired(now) }, "CoolingDown CoolingDown CoolingDown wait signs CoolingDown"),
        ("expired, cooled", State { phase: cooling(now), ..expired(now) }, "wait wait wait wait signs Active"),
        ("expired, nothing to ask with", State { phase: nothing.clone(), ..expired(now) }, "go go go wait signs CoolingDown"),
        ("expired on arrival", on_arrival(now + SECOND), "go wait go wait signs Active"),
        ("expired on arrival, later", on_arrival(now), "wait wait wait wait signs Active"),
        ("expired later than on arrival", State { issued_pause: Some(now + SECOND), ..expired(now) }, "wait wait wait wait signs Active"),
        ("no token", without_token(now), "wait wait wait wait LoginRequired Active"),
        ("no token, no refresher", State { renewable: false, ..without_token(now) }, "LoginRequired go go LoginRequired LoginRequired LoginRequired"),
        ("no token, under way", State { in_flight: flight(), ..without_token(now) }, "wait wait wait wait LoginRequired Refreshing"),
        ("no token, no refresher, under way", State { renewable: false, in_flight: flight(), ..without_token(now) }, "wait wait wait wait LoginRequired Refreshing"),
        ("no token, cooling, under way", State { phase: cooling(now + SECOND), in_flight: flight(), ..without_token(now) }, "wait wait wait wait LoginRequired Refreshing"),
        ("no token, cooling", State { phase: cooling(now + SECOND), ..without_token(now) }, "CoolingDown CoolingDown CoolingDown wait LoginRequired CoolingDown"),
        ("no token, cooled", State { phase: cooling(now), ..without_token(now) }, "wait wait wait wait LoginRequired Active"),
        ("no token, nothing to ask with", State { phase: nothing, ..without_token(now) }, "LoginRequired go go wait LoginRequired CoolingDown"),
        ("no token, dead", State { phase: dead(), ..without_token(now) }, "LoginRequired LoginRequired LoginRequired LoginRequired LoginRequired LoginRequired"),
        ("logged out, no refresher", State { renewable: false, ..logged_out.clone() }, "LoginRequired LoginRequired LoginRequired LoginRequired LoginRequired LoginRequired"),
        ("logged out", logged_out, "LoginRequired LoginRequired LoginRequired LoginRequired LoginRequired LoginRequired"),
        ("closed", State { phase: Phase::Closed, ..good(now) }, "Closed Closed Closed Closed Closed Closed"),
        ("closed, under way", State { phase: Phase::Closed, in_flight: flight(), ..without_token(now) }, "Closed Closed Closed Closed Closed Closed"),
    ];
    for (name, state, expected) in table {
        let signs = state.token_to_send().map_or_else(|error| format!("{:?}", error.kind()), |_| "signs".to_owned());
        let is = [
            told(state.should_refresh(now)),
            told(state.should_refresh_after_rejection(state.generation(), now)),
            told(state.should_refresh_after_rejection(6, now)),
            told(state.on_demand()),
            signs,
            format!("{:?}", state.public(now)),
        ];
        assert_eq!(is.join(" "), expected, "{name}");
        // The fast path always agrees with the full decision.
        if state.is_quiet(|| now) {
            assert_eq!(is[0], "go", "{name}");
        }
    }
}

#[test]
fn the_short_cut_reads_the_clock_for_expiry() {
    let now = now();
    assert!(good(now).is_quiet(|| now));
    let never = || panic!("the clock was read");
    assert!(State { due: None, ..good(now) }.is_quiet(never));
    assert!(State { renewable: false, ..expired(now) }.is_quiet(never));
    assert!(!State { due: Some(now), ..good(now) }.is_quiet(|| now));
    for state in [
        without_token(now),
        State { in_flight: flight(), ..good(now) },
        State { phase: cooling(now), ..good(now) },
        State { phase: Phase::Closed, ..good(now) },
    ] {
        assert!(!state.is_quiet(never));
    }
}

#[test]
fn a_failed_refresh_leaves_what_its_kind_asks() {
    let now = now();
    let after = |error: &Error, cooldown: u32| {
        let mut state = good(now);
        state.fail(error, now, cooldown * SECOND);
        let until = match &state.phase {
            Phase::CoolingDown { until, .. } => Some((*until - now).as_secs()),
            _ => None,
        };
        (state.public(now), until, state.broken_pause.map(|until| (until - now).as_secs()))
    };
    let asks = |seconds: u32| error(ErrorKind::Unavailable).with_retry_after(seconds * SECOND);
    let table = [
        (error(ErrorKind::LoginRequired), 10, (SessionState::LoginRequired, None, None)),
        // There was no call, so there was no rejection.
        (no_token(), 10, (SessionState::CoolingDown, Some(10), None)),
        (error(ErrorKind::Internal), 10, (SessionState::Active, None, Some(10))),
        (error(ErrorKind::Unavailable), 10, (SessionState::CoolingDown, Some(10), None)),
        (error(ErrorKind::BadResponse), 10, (SessionState::CoolingDown, Some(10), None)),
        (error(ErrorKind::ClientRejected), 10, (SessionState::CoolingDown, Some(10), None)),
        (asks(5), 10, (SessionState::CoolingDown, Some(10), None)),
        (asks(60), 10, (SessionState::CoolingDown, Some(60), None)),
        (asks(301), 10, (SessionState::CoolingDown, Some(300), None)),
        (asks(u32::MAX), 1000, (SessionState::CoolingDown, Some(1000), None)),
        (error(ErrorKind::Unavailable), 0, (SessionState::Active, Some(0), None)),
    ];
    for (error, cooldown, expected) in table {
        assert_eq!(after(&error, cooldown), expected, "{error:?} {cooldown}");
    }
    let mut endless = good(now);
    endless.fail(&error(ErrorKind::Unavailable), now, Duration::MAX);
    assert_eq!(endless.public(now + 299 * SECOND), SessionState::CoolingDown);

    let mut closed = State { phase: Phase::Closed, ..good(now) };
    closed.fail(&error(ErrorKind::Unavailable), now, SECOND);
    assert_eq!(closed.public(now), SessionState::Closed);
}

#[test]
fn a_cool_down_error_repeats_its_cause() {
    let cause = error(ErrorKind::Unavailable)
        .with_status(http::StatusCode::BAD_GATEWAY)
        .with_retry_after(7 * SECOND);
    let told = cooling_down(&cause);
    assert_eq!(told.kind(), ErrorKind::CoolingDown);
    assert_eq!(told.status(), cause.status());
    assert_eq!(told.retry_after(), Some(7 * SECOND));
    assert!(std::error::Error::source(&told).is_some());
    let told = cooling_down(&error(ErrorKind::BadResponse));
    assert_eq!(told.status(), None);
    assert_eq!(told.retry_after(), None);
}

#[test]
fn only_the_present_generation_captures() {
    let now = now();
    let token = AccessToken::new("new").unwrap();
    let lifetime = Some(Lifetime { from: now, until: now + SECOND });
    let mut state = State { rejected: true, probation: Some(now), ..good(now) };
    assert_eq!(state.capture(6, &token, lifetime, None), Captured::Superseded);
    assert_eq!(
        state.capture(7, &AccessToken::new("t").unwrap(), lifetime, None),
        Captured::Unchanged
    );
    assert!(state.rejected && state.generation == 7);
    assert_eq!(state.capture(7, &token, lifetime, Some(now)), Captured::Adopted { generation: 8 });
    assert_eq!(state.tokens().access_token(), Some(&token));
    assert!(
        !state.rejected
            && state.probation.is_none()
            && state.due == Some(now)
            && !state.is_on_probation()
    );
    // The refresh token is kept.
    assert!(state.refresh.is_some());

    let mut closed = State { phase: Phase::Closed, ..good(now) };
    assert_eq!(closed.capture(7, &token, lifetime, None), Captured::Superseded);
}

#[test]
fn a_refresh_replaces_only_what_it_brings() {
    let now = now();
    let pause = Some(now + SECOND);
    let before =
        || State { rejected: true, broken_pause: pause, phase: cooling(now + SECOND), ..good(now) };

    let mut state = before();
    state.adopt_tokens(&Tokens::new("new").unwrap(), None, None, pause);
    assert_eq!(state.generation, 8);
    assert_eq!(state.login, 0);
    assert!(
        !state.rejected
            && state.is_on_probation()
            && state.broken_pause.is_none()
            && state.lifetime.is_none()
    );
    assert_eq!(state.public(now), SessionState::Active);
    assert_eq!(state.refresh.as_ref().unwrap().expose_secret(), "r");

    // The same access token again does not start a new generation.
    let mut state = before();
    state.adopt_tokens(
        &Tokens::new("t").unwrap().with_refresh_token("r2").unwrap(),
        None,
        None,
        None,
    );
    assert_eq!(state.generation, 7);
    assert!(!state.rejected && !state.is_on_probation());
    assert_eq!(state.refresh.as_ref().unwrap().expose_secret(), "r2");

    let mut closed = State { phase: Phase::Closed, ..good(now) };
    closed.adopt_tokens(&Tokens::new("new").unwrap(), None, None, pause);
    assert_eq!(closed.public(now), SessionState::Closed);
}

#[test]
fn a_new_login_supersedes_the_refresh() {
    let now = now();
    let pause = Some(now + SECOND);
    let dead = Phase::LoginRequired(error(ErrorKind::LoginRequired));
    let mut state = State {
        in_flight: flight(),
        issued_pause: pause,
        broken_pause: pause,
        phase: dead,
        ..good(now)
    };
    assert!(state.replace(&Tokens::new("new").unwrap(), None, None).is_some());
    assert_eq!(state.generation, 8);
    assert_eq!(state.login, 1);
    assert!(
        state.in_flight.is_none()
            && state.refresh.is_none()
            && state.issued_pause.is_none()
            && state.broken_pause.is_none()
    );
    assert_eq!(state.public(now), SessionState::Active);
    assert!(state.has_tokens() && state.replace(&Tokens::empty(), None, None).is_none());
    assert_eq!(state.generation, 9);
    assert_eq!(state.login, 2);
    assert!(!state.has_tokens());

    let mut state = State { in_flight: flight(), ..good(now) };
    assert!(state.clear().is_some() && !state.has_tokens());
    assert_eq!(state.public(now), SessionState::LoginRequired);
    assert!(State { access: None, ..good(now) }.has_tokens());
    assert!(State { refresh: None, ..good(now) }.has_tokens());
}

#[test]
fn a_token_is_newer_only_if_it_is_another() {
    let now = now();
    let sent = good(now).signature();
    let other = AccessToken::new("new").ok();
    assert!(
        State { generation: 8, access: other.clone(), ..good(now) }.has_newer_token_than(&sent)
    );
    assert!(!State { access: other, ..good(now) }.has_newer_token_than(&sent));
    assert!(!State { generation: 8, ..good(now) }.has_newer_token_than(&sent));
    assert!(!State { generation: 8, access: None, ..good(now) }.has_newer_token_than(&sent));
}

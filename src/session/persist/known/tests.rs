use super::*;

fn pair(access: &str, refresh: &str) -> Tokens {
    Tokens::new(access).unwrap().with_refresh_token(refresh).unwrap()
}

#[test]
fn tokens_of_nobody_known_are_theirs() {
    let (own, theirs) = (pair("a", "r"), pair("b", "s"));
    let mut known = Known::default();
    assert!(!known.finds(&own, &own, known.login()), "the session holds them");
    assert!(!known.finds(&own, &theirs, known.login()), "the session has seen them there");
    assert!(known.finds(&theirs, &own, known.login()), "somebody else has stored them");
    known.tries(&own);
    assert!(
        !known.finds(&own, &theirs, known.login()),
        "a save of this session may have put them there"
    );
    known.announce(1, &pair("c", "t"));
    assert!(
        !known.finds(&theirs, &own, known.login()),
        "what was announced is newer than any of them"
    );
    assert!(known.has_unsaved(), "and is still to be saved");
}

#[test]
fn a_login_of_another_key_is_kept_as_it_is() {
    let of = |key: &str| Some(pair("a", "r").with_key_thumbprint(key));
    let mut known = Known::default();
    for own in [None, Some("own")] {
        let (found, _) = known.check_key(of("other"), own);
        assert!(found.is_none() && known.is_kept_out(), "{own:?}");
    }
    let (found, told) = known.check_key(of("own"), Some("own"));
    assert!(found.is_some() && told.is_none() && !known.is_kept_out());
    let (found, _) = known.check_key(Some(pair("a", "r")), Some("own"));
    assert!(found.is_some(), "no key is named");
    let told: Vec<_> = ["other", "third", "third", "other"]
        .map(|key| known.check_key(of(key), Some("own")).1)
        .into_iter()
        .flatten()
        .collect();
    assert_eq!(told, ["third", "other"], "each once in a row");
}

#[test]
fn given_tokens_take_the_place_of_any_login() {
    let mut known = Known::default();
    known.check_key(Some(pair("a", "r").with_key_thumbprint("other")), None);
    let given = pair("b", "s");
    known.announce(1, &given);
    assert!(!known.is_kept_out() && known.has_unsaved());
    known.saved(&given, true);
    known.check_key(Some(pair("c", "t").with_key_thumbprint("other")), None);
    assert!(known.intends(1, &given, None) && known.is_kept_out());
    assert!(!known.has_unsaved(), "what is kept out waits no longer");
}

#[test]
fn a_store_that_lost_a_save_gets_it_again() {
    let (old, new) = (pair("a", "r"), pair("b", "s"));
    let mut known = Known::default();
    known.sees(&old);
    assert!(known.intends(0, &new, old.refresh_token()));
    known.saved(&new, true);
    assert!(!known.has_unsaved());
    assert!(!known.finds(&old, &new, known.login()), "it is older than what is held");
    assert!(known.has_unsaved(), "and what is held is stored again before it is spent");
}

#[test]
fn a_save_of_a_former_login_settles_nothing() {
    let (first, second) = (pair("a", "r"), pair("b", "s"));
    let mut known = Known::default();
    known.announce(1, &second);
    known.saved(&first, false);
    assert!(known.has_unsaved());
    known.saved(&second, true);
    assert!(!known.has_unsaved());
}

/// Contract 8.4.
#[test]
fn no_more_than_eight_of_each_is_remembered() {
    let mut known = Known::default();
    for number in 0..20 {
        let tokens = pair(&format!("a{number}"), &format!("r{number}"));
        known.tries(&tokens);
        known.died(tokens.refresh_token().unwrap());
    }
    assert_eq!(known.tried.len(), REMEMBERED);
    assert_eq!(known.dead.len(), REMEMBERED);
    assert!(known.knows(&pair("a19", "r19")));
    assert!(!known.knows(&pair("a0", "r0")));
}

#[test]
fn a_background_save_that_dies_leaves_its_work() {
    let mut known = Known::default();
    assert!(known.wants_save(), "nobody saves yet");
    known.background_starts();
    assert!(!known.wants_save(), "the running one makes another round");
    known.round_begins();
    assert!(!known.has_unsaved());
    known.background_is_gone();
    assert!(known.has_unsaved());
    known.background_starts();
    known.round_begins();
    assert!(known.round_ends());
    known.background_is_gone();
    assert!(!known.has_unsaved());
}

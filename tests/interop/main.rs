//! Tests against real servers: `oidc-provider`, a certified OAuth server, behind an nginx that
//! fails on request.
//!
//! The servers are in `tests/peers`. Each test has its own servers, so that all tests can run at
//! once.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

#[path = "../support/trials.rs"]
mod trials;

mod api_faults;
mod client_auth;
mod dpop;
mod grants;
mod long_run;
mod peers;
mod rotation;
mod token_faults;
mod tokens;

use libtest_mimic::Arguments;

fn main() {
    let missing = peers::missing();
    let tests = trials::trials![
        api_faults with missing.clone() => [
            a_fault_of_the_api_is_the_callers,
            the_replays_fault_is_the_callers,
        ]
        client_auth with missing.clone() => [
            each_client_authentication_works,
            a_wrong_secret_costs_no_refresh_token,
        ]
        dpop with missing.clone() => [
            a_refresh_learns_the_providers_nonce,
            nonces_that_end_cost_one_request_each,
            a_login_of_another_key_is_over,
            a_restart_needs_the_login_and_its_key,
            each_retry_of_a_refresh_is_signed_anew,
            a_bound_login_is_revoked,
        ]
        grants with missing.clone() => [
            each_grant_outlasts_two_502,
            each_attempt_signs_another_assertion,
            a_crowd_from_nothing_is_one_call,
            the_provider_hears_of_a_logout,
            a_dead_login_falls_back_to_the_service,
        ]
        long_run with missing.clone() => [
            short_tokens_outlast_a_failing_endpoint,
            a_restarted_token_endpoint_costs_nothing,
            a_restarted_proxy_with_an_outer_retry,
        ]
        rotation with missing.clone() => [
            each_refresh_uses_the_last_refresh_token,
            sixty_four_rejections_are_one_call,
            a_grant_revoked_for_reuse_is_not_retried,
            an_expired_refresh_token_wants_a_new_login,
        ]
        token_faults with missing.clone() => [
            each_token_fault_ends_as_listed,
            retry_after_is_heeded_up_to_its_limit,
            a_request_outlasts_a_failing_endpoint,
        ]
        tokens with missing => [
            two_second_tokens_are_renewed_in_time,
            a_reissued_token_needs_no_call,
        ]
    ];
    libtest_mimic::run(&Arguments::from_args(), tests).exit();
}

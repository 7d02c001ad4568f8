//! `RedisStore` against a real Redis, alone and in a fleet.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may")]

#[path = "../support/redis_server.rs"]
mod redis_server;
#[path = "../support/trials.rs"]
mod trials;
#[path = "../support/workers.rs"]
mod workers;

mod admin;
mod as_one;
mod faults;
mod fleet;
mod store;

use libtest_mimic::Arguments;

fn main() {
    let missing = redis_server::missing();
    let mut tests = trials::trials![
        admin with missing.clone() => [
            a_changed_password_spends_nothing,
            an_evicted_login_is_stored_again,
            a_full_redis_spends_nothing,
            a_bound_login_is_shared_by_its_key,
        ]
        as_one with missing.clone() => [
            a_waiter_costs_eight_commands,
            an_outage_costs_eight_commands,
            a_dead_login_costs_eight_commands,
            who_may_not_subscribe_looks_once_a_second,
            a_holder_stopped_between_attempts_sends_nothing,
            a_failover_keeps_what_was_replicated,
            a_failover_that_loses_a_save_is_repaired,
            scripts_and_keys_may_be_lost,
            a_slow_redis_is_waited_for,
        ]
        faults with missing.clone() => [
            a_renewal_that_fails_keeps_the_lock,
            a_connection_whose_callers_left_is_given_up,
        ]
        fleet with missing.clone() => [
            four_processes_refresh_one_at_a_time,
            a_redis_that_goes_away_fails_no_request,
            a_restarted_redis_changes_nothing,
            a_stalled_holder_adopts_newer_tokens,
            a_killed_holder_blocks_for_one_lease,
            a_killed_holders_call_is_told,
            a_revoked_login_has_lost_no_call,
        ]
        store with missing => [
            a_save_is_loaded_from_one_hash_slot,
            keys_are_logins_apart,
            the_lock_excludes_until_it_is_dropped,
            a_dropped_wait_leaves_no_lock,
            a_runtime_shut_down_frees_its_lock,
            a_killed_holder_keeps_one_lease,
            a_stalled_holder_cannot_overwrite,
            an_old_fence_is_rejected,
            a_save_needs_its_lock,
            two_holders_with_one_fence_are_told_apart,
            a_fence_that_fell_behind_rises_above_what_was_written,
            a_redis_store_conforms,
            a_redis_without_resp3_conforms,
            a_cluster_of_two_nodes_conforms,
            dropping_a_runtime_takes_half_a_second_at_most,
            the_fence_survives_restarts_and_losses,
            a_holder_from_before_a_loss_is_fenced,
            four_processes_never_undo_saves,
            calls_fail_soon_while_redis_is_away,
            a_lock_dropped_while_away_is_freed_later,
            a_restart_between_two_calls_goes_unnoticed,
            a_hanging_redis_is_given_up_in_5_s,
            a_session_starts_before_its_redis,
            bad_urls_keys_and_passwords_fail_at_once,
            a_replicas_connection_is_given_up,
            errors_quote_no_server_text,
            documents_over_1_mib_are_errors,
            broken_and_newer_documents_are_kept,
            rediss_trusts_system_or_named_roots,
        ]
    ];
    // The parts of other processes: this binary starts itself once more for each.
    tests.extend(trials::trials![fleet => [worker] store => [child]]);
    libtest_mimic::run(&Arguments::from_args(), tests).exit();
}

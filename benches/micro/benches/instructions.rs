//! The instructions of a request. callgrind counts [`REQUESTS`] requests of each workload, after as
//! many uncounted ones, and those of storms compared with their ideal.

use std::{sync::Arc, time::Duration};

use gungraun::{library_benchmark, library_benchmark_group, main};
use reqwest_reauth_micro::{
    REQUESTS, Workload,
    storm::{Ideal, Storm},
};
use tokio::runtime::{Builder, Runtime};

fn warm(name: &str) -> Workload {
    let workload = Workload::new(name);
    workload.run(REQUESTS);
    workload
}

#[library_benchmark]
#[bench::bare_0(args = ("bare_0"), setup = warm)]
#[bench::bare_1(args = ("bare_1"), setup = warm)]
#[bench::bare_3(args = ("bare_3"), setup = warm)]
#[bench::bare_body(args = ("bare_body"), setup = warm)]
#[bench::bare_timeout(args = ("bare_timeout"), setup = warm)]
#[bench::bare_answer(args = ("bare_answer"), setup = warm)]
#[bench::bare_text(args = ("bare_text"), setup = warm)]
#[bench::bare_all(args = ("bare_all"), setup = warm)]
#[bench::bare_again(args = ("bare_again"), setup = warm)]
#[bench::authorize_3(args = ("authorize_3"), setup = warm)]
#[bench::capture_3(args = ("capture_3"), setup = warm)]
#[bench::refresh_3(args = ("refresh_3"), setup = warm)]
#[bench::replay_3(args = ("replay_3"), setup = warm)]
#[bench::chain_0(args = ("chain_0"), setup = warm)]
#[bench::chain_1(args = ("chain_1"), setup = warm)]
#[bench::chain_3(args = ("chain_3"), setup = warm)]
#[bench::chain_body(args = ("chain_body"), setup = warm)]
#[bench::chain_timeout(args = ("chain_timeout"), setup = warm)]
#[bench::chain_answer(args = ("chain_answer"), setup = warm)]
#[bench::chain_text(args = ("chain_text"), setup = warm)]
#[bench::chain_all(args = ("chain_all"), setup = warm)]
#[bench::chain_again(args = ("chain_again"), setup = warm)]
#[bench::outcome_3(args = ("outcome_3"), setup = warm)]
#[bench::per_request_3(args = ("per_request_3"), setup = warm)]
#[bench::in_scope_1(args = ("in_scope_1"), setup = warm)]
#[bench::in_scope_3(args = ("in_scope_3"), setup = warm)]
#[bench::in_scope_all(args = ("in_scope_all"), setup = warm)]
#[bench::scope_each_3(args = ("scope_each_3"), setup = warm)]
#[bench::bare_rejected(args = ("bare_rejected"), setup = warm)]
#[bench::chain_rejected(args = ("chain_rejected"), setup = warm)]
fn requests(workload: Workload) -> Workload {
    workload.run(REQUESTS);
    // Given back, so that its end is not counted.
    workload
}

/// The token endpoint responds as soon as all requests wait.
fn storm(waiters: usize) -> (Runtime, Storm) {
    (
        Builder::new_current_thread().enable_time().build().unwrap(),
        Storm::new(waiters, Duration::ZERO, Arc::new(|| ())),
    )
}

fn ideal(waiters: usize) -> (Runtime, Ideal) {
    (
        Builder::new_current_thread().enable_time().build().unwrap(),
        Ideal::new(waiters, Duration::ZERO, Arc::new(|| ())),
    )
}

#[library_benchmark]
#[bench::of_100(args = (100), setup = storm)]
#[bench::of_1000(args = (1_000), setup = storm)]
fn storms((runtime, storm): (Runtime, Storm)) -> (Runtime, Storm) {
    runtime.block_on(storm.run());
    (runtime, storm)
}

#[library_benchmark]
#[bench::of_100(args = (100), setup = ideal)]
#[bench::of_1000(args = (1_000), setup = ideal)]
fn ideals((runtime, ideal): (Runtime, Ideal)) -> (Runtime, Ideal) {
    runtime.block_on(ideal.run());
    (runtime, ideal)
}

library_benchmark_group!(name = chain, benchmarks = requests);
library_benchmark_group!(name = storming, benchmarks = [storms, ideals]);
main!(library_benchmark_groups = chain, storming);

//! Instructions of a DPoP proof (ES256, `ath`, a nonce, a token of 1 KiB) against those of one
//! signature over the same bytes. It may take 15 % more (contract 16.7).
//!
//! The program runs itself under callgrind, twice for each row, so that what is done once does not
//! count. A proof is what `Credential::headers` takes with `Placement::dpop` above what it takes
//! with `Placement::bearer`.

use std::{
    env,
    hint::black_box,
    pin::pin,
    process::{Command, ExitCode},
    task::{Context, Poll, Waker},
};

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair},
};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use reqwest_reauth::{Credential, DpopKey, Placement, Session, Tokens};
use reqwest_reauth_micro::ORIGIN;

const URL: &str = "https://api.example.com/v1/jobs/4711/state?page=2";
const NONCE: &str = "eyJ7S_zG.eyJH0-Z.HX4w-7v.0f8fad5b-d9cb-469f";
const MOST: f64 = 1.15;
/// How often each row is done in its two runs.
const RUNS: [u64; 2] = [100, 1100];

fn main() -> ExitCode {
    let mut arguments = env::args().skip(1);
    match (arguments.next().as_deref(), arguments.next().and_then(|times| times.parse().ok())) {
        (Some(row @ ("signature" | "bearer" | "proof")), Some(times)) => {
            run(row, times);
            ExitCode::SUCCESS
        }
        _ => compare(),
    }
}

fn compare() -> ExitCode {
    let Some([signature, bearer, headers]) = count_all() else {
        eprintln!("no instruction counts: valgrind is not installed, or failed");
        let ci = env::var_os("CI").is_some();
        return if ci { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    };
    let proof = headers - bearer;
    let ratio = proof as f64 / signature as f64;
    let verdict = if ratio > MOST { "TOO MUCH" } else { "" };
    println!(
        "proof {proof} instructions, signature {signature}: {ratio:.3} (at most {MOST})  {verdict}"
    );
    if ratio > MOST { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn count_all() -> Option<[u64; 3]> {
    Some([count("signature")?, count("bearer")?, count("proof")?])
}

/// Instructions of one of these.
fn count(row: &str) -> Option<u64> {
    let [few, many] = RUNS.map(|times| counted(row, times));
    Some((many? - few?) / (RUNS[1] - RUNS[0]))
}

fn counted(row: &str, times: u64) -> Option<u64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(env::current_exe().ok()?)
        .args([row, &times.to_string()])
        .output()
        .ok()?;
    let said = String::from_utf8_lossy(&output.stderr);
    let (_, count) = said.split_once("Collected :")?;
    count.split_whitespace().next()?.parse().ok()
}

fn run(row: &str, times: u64) {
    if row == "signature" {
        return sign(&signed_bytes(), times);
    }
    let placement = match row {
        "bearer" => Placement::bearer(),
        _ => Placement::dpop(DpopKey::generate().unwrap()),
    };
    let credential = credential(placement);
    for _ in 0..times {
        black_box(headers(&credential));
    }
}

/// What a proof signs: all but the signature.
fn signed_bytes() -> Vec<u8> {
    let headers = headers(&credential(Placement::dpop(DpopKey::generate().unwrap())));
    let proof = headers["dpop"].to_str().unwrap();
    proof.rsplit_once('.').unwrap().0.as_bytes().to_vec()
}

fn sign(bytes: &[u8], times: u64) {
    let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
    let random = SystemRandom::new();
    for _ in 0..times {
        black_box(pair.sign(&random, black_box(bytes)).unwrap());
    }
}

/// With the nonce of a response.
fn credential(placement: Placement) -> Credential {
    let tokens = Tokens::new("t".repeat(1024)).unwrap();
    let session = Session::builder(tokens).origin(ORIGIN).placement(placement).build().unwrap();
    let credential = ready(session.credential(URL)).unwrap();
    let answer = HeaderMap::from_iter([(
        http::HeaderName::from_static("dpop-nonce"),
        HeaderValue::from_static(NONCE),
    )]);
    session.observe(&credential, URL, StatusCode::OK, &answer);
    credential
}

fn headers(credential: &Credential) -> HeaderMap {
    ready(credential.headers(&Method::POST, URL)).unwrap()
}

/// Nothing here waits.
fn ready<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => done,
        Poll::Pending => panic!("it waits"),
    }
}

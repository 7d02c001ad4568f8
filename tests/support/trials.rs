//! The harness for tests that need an external server: `libtest-mimic` in place of libtest, which
//! cannot report a test as ignored once it runs.
//!
//! Without the server a test is *ignored*, with the reason. With `CI` set it fails.
#![allow(unreachable_pub, reason = "each test binary compiles its own copy")]

use std::future::Future;

use libtest_mimic::{Completion, Trial};

/// Lists tests by module. Those after `with $missing` need a server, and `$missing` says why it
/// cannot run here, if it cannot. A test that is not listed is dead code, which the lints reject.
macro_rules! trials {
    ($($module:ident $(with $missing:expr)? => [$($test:ident),+ $(,)?])+) => {
        vec![$({
            // Only libtest runs functions with a test attribute.
            const _: () = assert!(
                !$crate::trials::has_test_attribute(include_str!(concat!(stringify!($module), ".rs"))),
                "remove the test attribute, and name the test in main.rs",
            );
            #[allow(unused_mut, unused_assignments, reason = "not every list has a reason")]
            let mut missing: Option<String> = None;
            $(missing = $missing;)?
            vec![$($crate::trials::trial(
                concat!(stringify!($module), "::", stringify!($test)),
                missing.clone(),
                $module::$test,
            )),+]
        }),+]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
    };
}
pub(crate) use trials;

/// A test with its own runtime.
pub fn trial<F>(name: &str, missing: Option<String>, test: fn() -> F) -> Trial
where
    F: Future<Output = ()> + 'static,
{
    Trial::ignorable_test(name, move || match missing {
        Some(reason) if std::env::var_os("CI").is_some() => Err(reason.into()),
        Some(reason) => Ok(Completion::ignored_with(reason)),
        None => {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()?;
            runtime.block_on(test());
            Ok(Completion::Completed)
        }
    })
}

/// Whether a line of this source is a test attribute.
pub const fn has_test_attribute(source: &str) -> bool {
    let bytes = source.as_bytes();
    let mut at = 0;
    while at + 1 < bytes.len() {
        let begins =
            bytes[at] == b'#' && bytes[at + 1] == b'[' && (at == 0 || bytes[at - 1] == b'\n');
        at += 1;
        if !begins {
            continue;
        }
        while at + 4 < bytes.len() && bytes[at] != b'\n' {
            if matches!(bytes.split_at(at).1, [b't', b'e', b's', b't', b']' | b'(', ..]) {
                return true;
            }
            at += 1;
        }
    }
    false
}

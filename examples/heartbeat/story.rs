//! What the session did, according to its events.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use reqwest_reauth::Event;

/// The events, counted, and those since the last line.
#[derive(Default)]
pub(crate) struct Story(Mutex<(Counts, VecDeque<String>)>);

#[derive(Clone, Copy, Default)]
pub(crate) struct Counts {
    pub(crate) beats: u64,
    pub(crate) lost: u64,
    pub(crate) captured: u64,
    pub(crate) refreshed: u64,
    pub(crate) replayed: u64,
    pub(crate) token_calls: u64,
    pub(crate) requests: u64,
    pub(crate) failed: u64,
}

impl Story {
    pub(crate) fn count(&self, count: impl FnOnce(&mut Counts)) {
        count(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner).0);
    }

    pub(crate) fn counts(&self) -> Counts {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0
    }

    pub(crate) fn take_news(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1.drain(..).collect()
    }

    /// Adds something that no event reports.
    pub(crate) fn add_news(&self, news: String) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1.push_back(news);
    }

    pub(crate) fn listener(self: &Arc<Self>) -> impl Fn(&Event) + Send + Sync + 'static {
        let story = Arc::clone(self);
        move |event| {
            let (counts, news) = &mut *story.0.lock().unwrap_or_else(PoisonError::into_inner);
            news.push_back(match event {
                Event::Captured { .. } => {
                    counts.captured += 1;
                    "captured".to_owned()
                }
                Event::RefreshRetrying { status, delay, .. } => {
                    counts.token_calls += 1;
                    let status = status.map_or_else(
                        || "no response".to_owned(),
                        |status| status.as_u16().to_string(),
                    );
                    format!("token endpoint: {status}, again in {:.1} s", delay.as_secs_f64())
                }
                Event::Refreshed { attempts, .. } => {
                    counts.token_calls += u64::from(*attempts > 0);
                    counts.refreshed += 1;
                    format!("refreshed at attempt {attempts}")
                }
                Event::RefreshFailed { error, .. } => {
                    counts.token_calls += u64::from(error.attempts() > 0);
                    format!("refresh failed: {error}")
                }
                Event::Replayed { status, .. } => {
                    counts.replayed += 1;
                    format!("replayed ({})", status.as_u16())
                }
                // Two responses in one window carry two tokens, and only the later one is kept.
                _ => return,
            });
        }
    }
}

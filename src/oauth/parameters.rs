//! Form members that the user adds: fixed ones, and late ones, which are computed for each attempt.

use std::{future::Future, path::PathBuf, pin::Pin, sync::Arc};

use url::Url;
use zeroize::Zeroizing;

use super::{
    failure::{Cause, Failure},
    redact::Secrets,
};
use crate::{
    catch_panic::catch_panic,
    error::{BoxError, Error, ErrorKind},
    secret_file,
};

type Making = Pin<Box<dyn Future<Output = Result<Zeroizing<String>, BoxError>> + Send>>;

#[derive(Clone)]
pub(super) struct Parameter {
    name: String,
    value: Value,
    is_of_client: bool,
}

#[derive(Clone)]
enum Value {
    Fixed(Zeroizing<String>),
    /// Called with the token endpoint.
    Late(Arc<dyn Fn(&Url) -> Making + Send + Sync>),
}

/// A parameter could not be computed, so nothing was sent.
pub(super) struct NotMade {
    name: String,
    /// `None` for a panic.
    error: Option<BoxError>,
}

impl Parameter {
    pub(super) fn fixed(name: String, value: String) -> Self {
        Self { name, value: Value::Fixed(Zeroizing::new(value)), is_of_client: false }
    }

    pub(super) fn late<F, R>(name: String, make: F) -> Self
    where
        F: Fn(&Url) -> R + Send + Sync + 'static,
        R: Future<Output = Result<String, BoxError>> + Send + 'static,
    {
        let make = move |endpoint: &Url| -> Making {
            let making = make(endpoint);
            Box::pin(async { making.await.map(Zeroizing::new) })
        };
        Self { name, value: Value::Late(Arc::new(make)), is_of_client: false }
    }

    pub(super) fn file(name: String, path: PathBuf) -> Self {
        let path = Arc::new(path);
        let make = move |_: &Url| -> Making {
            let path = Arc::clone(&path);
            Box::pin(async move {
                secret_file::read(&path)
                    .await
                    .map_err(|error| format!("{}: {error}", path.display()).into())
            })
        };
        Self { name, value: Value::Late(Arc::new(make)), is_of_client: false }
    }

    /// Marks the parameter as part of the client's authentication, which the revocation endpoint
    /// receives too.
    pub(super) fn of_client(self) -> Self {
        Self { is_of_client: true, ..self }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn is_of_client(&self) -> bool {
        self.is_of_client
    }

    /// The value, if it is fixed.
    pub(super) fn known(&self) -> Option<&str> {
        match &self.value {
            Value::Fixed(value) => Some(value),
            Value::Late(_) => None,
        }
    }

    /// Computes a late value.
    pub(super) async fn made(&self, endpoint: &Url) -> Result<Option<Zeroizing<String>>, NotMade> {
        let Value::Late(make) = &self.value else {
            return Ok(None);
        };
        // The closure may panic, and so may its future.
        let error = match catch_panic(async { make(endpoint).await }).await {
            Some(Ok(value)) => return Ok(Some(value)),
            Some(Err(error)) => Some(error),
            None => None,
        };
        Err(NotMade { name: self.name.clone(), error })
    }
}

impl NotMade {
    /// Reports another part of a call that failed with this crate's error.
    #[cfg(feature = "dpop")]
    pub(super) fn of(name: String, error: Error) -> Self {
        let panicked = error.kind() == ErrorKind::Internal;
        Self { name, error: (!panicked).then(|| error.into()) }
    }

    pub(super) fn failure(&self) -> Failure {
        match &self.error {
            None => Failure::Panicked,
            Some(error) => match ours(error).map(Error::kind) {
                Some(ErrorKind::InvalidConfig) => Failure::Misconfigured,
                _ => Failure::Unreached,
            },
        }
    }

    /// The cause, without secrets.
    pub(super) fn cause(self, secrets: &Secrets) -> Cause {
        let Self { name, error } = self;
        let Some(error) = error else {
            return format!("the closure for the parameter {name} panicked").into();
        };
        if let Some(ours) = ours(&error) {
            return Box::new(ours.clone());
        }
        let links = anyhow::Chain::new(&*error).map(ToString::to_string);
        let text = links.collect::<Vec<_>>().join(": ");
        match secrets.clean(&text) {
            Some(text) => format!("the parameter {name} could not be created: {text}").into(),
            None => format!("the parameter {name} could not be created").into(),
        }
    }
}

/// Finds this crate's error inside a user's error.
fn ours(error: &BoxError) -> Option<&Error> {
    Error::find_in(&**error)
}

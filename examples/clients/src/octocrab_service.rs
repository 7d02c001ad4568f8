//! octocrab accepts a tower service. Here the whole chain is that service.

use octocrab::{
    AuthState, OctoBody, Octocrab, OctocrabBuilder, service::middleware::base_uri::BaseUriLayer,
};
use reqwest_reauth::{Session, reqwest};
use serde_json::{Value, json};

use crate::login::{BoxError, Login};

/// octocrab streams its bodies. The session needs `buffer_bodies` to replay them.
pub fn octocrab(session: &Session, base: &str) -> Result<Octocrab, BoxError> {
    let client = session.wrap(reqwest::Client::new());
    let service = tower::service_fn(move |request: http::Request<OctoBody>| {
        let client = client.clone();
        async move {
            let request = reqwest::Request::try_from(request.map(reqwest::Body::wrap))?;
            let response = client.execute(request).await?;
            Ok::<_, BoxError>(http::Response::<reqwest::Body>::from(response))
        }
    });
    let octocrab = OctocrabBuilder::new_empty()
        .with_service(service)
        .with_layer(&BaseUriLayer::new(base.parse()?))
        .with_auth(AuthState::None)
        .build()?;
    Ok(octocrab)
}

pub async fn run() -> Result<(), BoxError> {
    let login = Login::expired(&[]).await?;
    let github = octocrab(&login.session, login.server.origin())?;
    let issue = json!({ "title": "one login for every client" });
    let _: Value = github.post("/repos/o/r/issues", Some(&issue)).await?;
    login.check("octocrab");
    let bodies: Vec<_> = login.server.requests().into_iter().map(|request| request.body).collect();
    assert_eq!(bodies[0], bodies[1]);
    assert_eq!(serde_json::from_slice::<Value>(&bodies[0])?, issue);
    Ok(())
}

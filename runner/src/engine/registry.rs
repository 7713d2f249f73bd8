//! What Docker's own command line knows of registries: which one an image is in, and who we are there.

use std::{
    env,
    path::{Path, PathBuf},
};

use bollard::auth::DockerCredentials;
use docker_credential::{CredentialRetrievalError, DockerCredential, get_credential};

/// Docker's name for its public registry in its configuration.
const PUBLIC: &str = "https://index.docker.io/v1/";

/// The registry of an image reference. The first part of a name is one if it could not be a folder (`distribution/reference`).
fn registry(image: &str) -> &str {
    match image.split_once('/') {
        Some(("docker.io" | "index.docker.io", _)) => PUBLIC,
        Some((first, _)) if first == "localhost" || first.contains(['.', ':']) => first,
        _ => PUBLIC,
    }
}

/// A reference without tag and digest would mean all tags.
pub(super) fn with_tag(image: &str) -> String {
    let name = image.rsplit('/').next().unwrap_or(image);
    if name.contains([':', '@']) { image.to_owned() } else { format!("{image}:latest") }
}

/// The credentials for an image from Docker's own configuration (`docker login`), `None` if there are none. May run a credential
/// helper: it blocks.
pub(super) fn credentials(image: &str) -> Result<Option<DockerCredentials>, String> {
    let registry = registry(image);
    let found = match get_credential(registry) {
        Ok(DockerCredential::UsernamePassword(username, password)) => DockerCredentials {
            username: Some(username),
            password: Some(password),
            ..DockerCredentials::default()
        },
        Ok(DockerCredential::IdentityToken(token)) => {
            DockerCredentials { identitytoken: Some(token), ..DockerCredentials::default() }
        }
        Err(CredentialRetrievalError::ConfigReadError) => {
            // One that is not there is said to be unreadable, too.
            if let Some(path) = configuration().filter(|path| path.exists()) {
                tracing::warn!(path = %path.display(), "Docker's configuration cannot be read; images are pulled without credentials");
            }
            return Ok(None);
        }
        Err(
            CredentialRetrievalError::ConfigNotFound
            | CredentialRetrievalError::NoCredentialConfigured,
        ) => return Ok(None),
        Err(error) => return Err(format!("the credentials for {registry}: {error}")),
    };
    Ok(Some(DockerCredentials { serveraddress: Some(registry.to_owned()), ..found }))
}

/// Where that is.
fn configuration() -> Option<PathBuf> {
    let home = || env::var_os("HOME").map(|home| Path::new(&home).join(".docker"));
    let folder = env::var_os("DOCKER_CONFIG").map(PathBuf::from).or_else(home);
    folder.map(|folder| folder.join("config.json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_in_the_registry_that_its_first_part_names() {
        for (image, expected) in [
            ("busybox", PUBLIC),
            ("simcore/services/comp/itis/sleeper:2.1.6", PUBLIC),
            ("docker.io/acme/x", PUBLIC),
            ("index.docker.io/acme/x", PUBLIC),
            ("registry.example.org/a/b:1", "registry.example.org"),
            ("127.0.0.1:5000/a@sha256:00", "127.0.0.1:5000"),
            ("localhost/a", "localhost"),
        ] {
            assert_eq!(registry(image), expected, "{image}");
        }
    }

    #[test]
    fn one_tag_is_pulled_not_all() {
        for (image, expected) in [
            ("127.0.0.1:5000/a", "127.0.0.1:5000/a:latest"),
            ("a/b:1", "a/b:1"),
            ("a/b@sha256:00", "a/b@sha256:00"),
        ] {
            assert_eq!(with_tag(image), expected);
        }
    }
}

//! Delivers callbacks: one attempt at a time for each, by tasks of their own, with pauses between attempts that outlast a restart.
//!
//! The receiver is named by a user, so it is not trusted: a name is looked up for each attempt, only public addresses are connected to,
//! and of what it answers nothing but the status is looked at.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use chrono::TimeDelta;
use hyper::{
    Request, StatusCode,
    client::conn::http1,
    header::{CONTENT_TYPE, HOST, USER_AGENT},
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::Semaphore,
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{InvalidDnsNameError, ServerName},
    },
};
use url::{Host, Position, Url};

use super::{Dispatcher, Error, Result};
use crate::{
    domain::{
        labels::cut,
        time::now,
        webhook::{CallbackState, Delivery, is_public, sign},
    },
    report::chain,
};

/// How many callbacks are delivered at the same time.
const PLACES: usize = 64;

/// How long an attempt may take, from looking up the name to the answer.
const TIMEOUT: Duration = Duration::from_secs(15);

/// How long a claim lasts: whoever has not written down by then what came of it is taken for dead.
const CLAIM: TimeDelta = TimeDelta::minutes(1);

/// Characters that are kept of what came of an attempt.
const LONGEST_RESULT: usize = 500;

/// How callbacks are delivered.
pub struct Webhooks {
    /// Whether addresses that are not public are connected to.
    private: bool,
    /// In seconds, one for each attempt after the first.
    pauses: Vec<u32>,
    places: Arc<Semaphore>,
    timeout: Duration,
    tls: TlsConnector,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    #[error("the URL cannot be read")]
    Url(#[from] url::ParseError),
    #[error("the name cannot be looked up")]
    LookUp(#[source] io::Error),
    // Without the address: whom names of the inside belong to is nobody's business outside.
    #[error("the host has an address that is not public")]
    Private,
    #[error("cannot connect")]
    Connect(#[source] io::Error),
    #[error("the URL has no host that a certificate could be for")]
    Name(#[from] InvalidDnsNameError),
    #[error("TLS")]
    Tls(#[source] io::Error),
    #[error("the request cannot be made")]
    Request(#[from] hyper::http::Error),
    #[error("HTTP")]
    Http(#[from] hyper::Error),
}

impl Webhooks {
    /// Delivers to addresses that are not public only if `private`, and tries again after each of these pauses, in seconds.
    pub fn new(private: bool, pauses: Vec<u32>) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        Self::trusting(roots, private, pauses)
    }

    fn trusting(roots: RootCertStore, private: bool, pauses: Vec<u32>) -> Result<Self> {
        let tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::Machine(format!("setting up TLS: {error}")))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let places = Arc::new(Semaphore::new(PLACES));
        Ok(Self { private, pauses, places, timeout: TIMEOUT, tls: Arc::new(tls).into() })
    }

    /// Makes one attempt.
    async fn send(&self, delivery: &Delivery) -> Result<StatusCode, Failure> {
        let attempt = timeout(self.timeout, self.post(delivery)).await;
        attempt.map_err(|_| Failure::TimedOut(self.timeout))?
    }

    async fn post(&self, delivery: &Delivery) -> Result<StatusCode, Failure> {
        let url = Url::parse(&delivery.url)?;
        let (id, timestamp) = (delivery.job_id.to_string(), now().timestamp());
        let signature = sign(&delivery.secret, &id, timestamp, &delivery.payload);
        let request = Request::post(&url[Position::BeforePath..Position::AfterQuery])
            .header(HOST, &url[Position::BeforeHost..Position::AfterPort])
            .header(CONTENT_TYPE, "application/json")
            .header(USER_AGENT, concat!("solverd/", env!("CARGO_PKG_VERSION")))
            .header("webhook-id", id)
            .header("webhook-timestamp", timestamp)
            .header("webhook-signature", signature)
            .body(delivery.payload.clone())?;
        let addresses = self.addresses(url.clone()).await?;
        let stream = TcpStream::connect(&addresses[..]).await.map_err(Failure::Connect)?;
        if url.scheme() == "http" {
            return Ok(exchange(stream, request).await?);
        }
        let name = match url.host() {
            Some(Host::Ipv4(ip)) => IpAddr::V4(ip).into(),
            Some(Host::Ipv6(ip)) => IpAddr::V6(ip).into(),
            Some(Host::Domain(name)) => ServerName::try_from(name.to_owned())?,
            None => return Err(Failure::Url(url::ParseError::EmptyHost)),
        };
        let stream = self.tls.connect(name, stream).await.map_err(Failure::Tls)?;
        Ok(exchange(stream, request).await?)
    }

    /// The addresses to connect to. They are looked up here and nowhere else: what was checked is what is connected to.
    async fn addresses(&self, url: Url) -> Result<Vec<SocketAddr>, Failure> {
        let found = tokio::task::spawn_blocking(move || url.socket_addrs(|| None)).await;
        let found = found.map_err(io::Error::other).flatten().map_err(Failure::LookUp)?;
        if self.private || found.iter().all(|address| is_public(address.ip())) {
            return Ok(found);
        }
        Err(Failure::Private)
    }

    /// How long to wait after this attempt has failed before the next; `None` if it was the last. A little longer than the pause
    /// says, by chance: what failed together need not come back together.
    fn pause(&self, attempt: i32) -> Option<TimeDelta> {
        let index = usize::try_from(attempt).ok()?.checked_sub(1)?;
        let pause = TimeDelta::seconds(i64::from(*self.pauses.get(index)?));
        let chance = getrandom::u32().unwrap_or_default() % 100;
        Some(pause + pause * i32::try_from(chance).ok()? / 500)
    }
}

/// Sends a request and reads the status of the answer; whatever else it holds is not waited for.
async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<String>,
) -> Result<StatusCode, hyper::Error> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let mut answer = Box::pin(sender.send_request(request));
    let answer = tokio::select! {
        biased;
        answer = &mut answer => answer,
        // A receiver that closes the connection may have answered before.
        _ = connection => answer.await,
    };
    Ok(answer?.status())
}

impl Dispatcher {
    /// Takes the callbacks that are due, as many as there are places for, and has each delivered by a task of its own.
    pub(super) async fn deliver_callbacks(&self) -> Result<()> {
        let inner = &self.0;
        while let Ok(place) = inner.webhooks.places.clone().try_acquire_owned() {
            let at = now();
            let Some(delivery) = inner.db.callback_claim(at, at + CLAIM).await? else { break };
            let dispatcher = self.clone();
            inner.tasks.spawn(async move {
                dispatcher.deliver(&delivery).await;
                drop(place);
                // There is a place again, and what failed may be due again.
                dispatcher.0.wake.notify();
            });
        }
        Ok(())
    }

    async fn deliver(&self, delivery: &Delivery) {
        let inner = &self.0;
        let attempted = tokio::select! {
            attempted = inner.webhooks.send(delivery) => attempted,
            // The next life of the service, or another one, goes on when the claim has run out.
            () = inner.closing.cancelled() => return,
        };
        let result = match &attempted {
            Ok(status) => format!("status {}", status.as_u16()),
            // Parts of it may come from the receiver.
            Err(error) => cut(&chain(error).replace(char::is_control, " "), LONGEST_RESULT),
        };
        let again = inner.webhooks.pause(delivery.attempts).map(|pause| now() + pause);
        let (state, next) = match attempted {
            Ok(status) if status.is_success() => (CallbackState::Delivered, None),
            Ok(StatusCode::GONE) => (CallbackState::GivenUp, None),
            _ if again.is_some() => (CallbackState::Due, again),
            _ => (CallbackState::GivenUp, None),
        };
        let (job, attempt) = (delivery.job_id, delivery.attempts);
        if state == CallbackState::GivenUp {
            tracing::warn!(%job, attempt, result, "a callback is given up");
        } else {
            tracing::info!(%job, attempt, result, "a callback was tried");
        }
        let written = self.persist(|| inner.db.callback_attempted(delivery, state, next, &result));
        if let Err(error) = written.await {
            tracing::error!(%job, error = chain(&error), "a callback will be delivered once more");
        }
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertifiedKey, generate_simple_self_signed};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };
    use tokio_rustls::{
        TlsAcceptor,
        rustls::{
            ServerConfig,
            pki_types::{CertificateDer, PrivatePkcs8KeyDer},
        },
    };

    use super::*;
    use crate::domain::id::JobId;

    fn webhooks(private: bool) -> Webhooks {
        Webhooks::trusting(RootCertStore::empty(), private, vec![0, 60]).unwrap()
    }

    fn delivery(url: &str) -> Delivery {
        let (secret, payload) = (vec![7; 24], r#"{"type":"job.succeeded"}"#.to_owned());
        Delivery { job_id: JobId::new(), url: url.to_owned(), secret, payload, attempts: 1 }
    }

    /// Reads a request to the end of its body.
    async fn read(stream: &mut (impl AsyncRead + Unpin)) -> String {
        let mut request = Vec::new();
        while !request.ends_with(b"}") {
            assert_ne!(stream.read_buf(&mut request).await.unwrap(), 0, "it broke off");
        }
        String::from_utf8(request).unwrap()
    }

    /// Sends to a receiver that answers with these bytes and closes; gives what was received as well.
    async fn attempt(answer: &[u8]) -> (Result<StatusCode, Failure>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let delivery = delivery(&format!("http://127.0.0.1:{port}/told?by=us"));
        let receiver = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let request = read(&mut stream).await;
            // Whoever has read enough may be gone.
            let _ = stream.write_all(answer).await;
            request
        };
        let webhooks = webhooks(true);
        tokio::join!(webhooks.send(&delivery), receiver)
    }

    #[tokio::test]
    async fn the_status_is_read_and_nothing_else() {
        let endless = [
            b"HTTP/1.1 200 OK\r\ncontent-length: 9999999999\r\n\r\n".as_slice(),
            &vec![b'x'; 1 << 20],
        ];
        for (answer, status) in [
            (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".as_slice(), 200),
            (b"HTTP/1.0 204 No Content\r\n\r\n", 204),
            (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 202 Accepted\r\n\r\n", 202),
            (b"HTTP/1.1 301 Moved\r\nlocation: http://127.0.0.1:1/\r\n\r\n", 301),
            (b"HTTP/1.1 410 Gone\r\ncontent-length: 7\r\n\r\nnothing", 410),
            (&endless.concat(), 200),
        ] {
            let (answered, request) = attempt(answer).await;
            assert_eq!(answered.unwrap().as_u16(), status);
            assert!(
                request.starts_with("POST /told?by=us HTTP/1.1\r\nhost: 127.0.0.1:"),
                "{request}"
            );
            assert!(request.ends_with("\r\n\r\n{\"type\":\"job.succeeded\"}"), "{request}");
        }
        let long = [b"HTTP/1.1 200 OK\r\nx: ".as_slice(), &vec![b'x'; 1 << 20]];
        for (answer, why) in [
            (b"".as_slice(), "closed"),
            (b"SSH-2.0-OpenSSH_9.2\r\n", "HTTP"),
            (b"HTTP/1.1 200 OK\r\ncontent-le", "HTTP"),
            (&long.concat(), "too large"),
        ] {
            let failure = chain(&attempt(answer).await.0.unwrap_err());
            assert!(failure.contains(why), "{failure}");
        }
    }

    #[tokio::test]
    async fn a_receiver_that_does_not_answer_is_left() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://127.0.0.1:{}/", listener.local_addr().unwrap().port());
        let hasty = Webhooks { timeout: Duration::from_millis(200), ..webhooks(true) };
        let failure = hasty.send(&delivery(&url)).await.unwrap_err();
        assert_eq!(failure.to_string(), "no answer within 200ms");
        drop(listener);
        let failure = chain(&webhooks(true).send(&delivery(&url)).await.unwrap_err());
        assert!(failure.starts_with("cannot connect: Connection refused"), "{failure}");
    }

    #[tokio::test]
    async fn only_public_addresses_are_connected_to() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        for host in ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]"] {
            let refused = webhooks(false).send(&delivery(&format!("http://{host}:{port}/"))).await;
            assert!(matches!(refused, Err(Failure::Private)), "{host}: {refused:?}");
        }
        let connection = listener.accept().unwrap_err();
        assert_eq!(connection.kind(), io::ErrorKind::WouldBlock);
    }

    #[tokio::test]
    async fn a_certificate_must_be_trusted_and_for_this_host() {
        for (issued_for, trusted, wrong) in [
            ("localhost", true, None),
            ("localhost", false, Some("UnknownIssuer")),
            ("example.org", true, Some("not valid for name")),
        ] {
            let CertifiedKey { cert, signing_key } =
                generate_simple_self_signed([issued_for.to_owned()]).unwrap();
            let certificate: CertificateDer = cert.der().clone();
            let key = PrivatePkcs8KeyDer::from(signing_key.serialize_der());
            let tls = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![certificate.clone()], key.into())
                .unwrap();
            let acceptor = TlsAcceptor::from(Arc::new(tls));
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("https://localhost:{}/", listener.local_addr().unwrap().port());
            let receiver = async {
                let (stream, _) = listener.accept().await.unwrap();
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                read(&mut stream).await;
                stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
            };
            let mut roots = RootCertStore::empty();
            if trusted {
                roots.add(certificate).unwrap();
            }
            let webhooks = Webhooks::trusting(roots, true, Vec::new()).unwrap();
            let delivery = delivery(&url);
            let (answered, ()) = tokio::join!(webhooks.send(&delivery), receiver);
            match wrong {
                None => assert_eq!(answered.unwrap(), StatusCode::NO_CONTENT),
                Some(why) => {
                    let failure = chain(&answered.unwrap_err());
                    assert!(failure.contains(why), "{failure}");
                }
            }
        }
    }

    #[test]
    fn pauses_come_in_their_order_and_end() {
        let webhooks = webhooks(true);
        let seconds = |attempt| webhooks.pause(attempt).map(|pause| pause.num_seconds());
        assert_eq!((seconds(1), seconds(3), seconds(0)), (Some(0), None, None));
        assert!((60..72).contains(&seconds(2).unwrap()));
    }
}

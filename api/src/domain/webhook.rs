//! Webhooks: where the end of a job is told, what is said, and how it is signed. Headers and signature are those of Standard Webhooks 1.0.

use std::net::{IpAddr, Ipv4Addr};

use base64::{Engine, prelude::BASE64_STANDARD};
use chrono::{DateTime, Utc};
use hmac::{Hmac, KeyInit, Mac};
use serde::Serialize;
use sha2::Sha256;
use url::{Host, Url};
use utoipa::ToSchema;

use super::{
    id::JobId,
    job::{Job, JobState, JobStatus},
    time::Timestamp,
};

/// Characters of a URL.
const LONGEST_URL: usize = 2083;

/// What a secret begins with.
const SECRET_PREFIX: &str = "whsec_";

/// Where the end of a job is to be told, and what signs it. Without `Debug`: the secret stays out of logs.
#[derive(Clone, PartialEq, Eq)]
pub struct Callback {
    /// In its normal form.
    pub url: Url,
    /// 24 to 64 bytes.
    pub secret: Vec<u8>,
}

impl Callback {
    /// Reads a URL, or says which rule it breaks. Addresses in it must be public, unless `private` ones are allowed; which addresses a
    /// name has shows only when it is called.
    pub fn parse_url(text: &str, private: bool) -> Result<Url, String> {
        let url = Url::parse(text).map_err(|error| format!("must be an absolute URL ({error})"))?;
        let address = match url.host() {
            Some(Host::Ipv4(ip)) => Some(IpAddr::V4(ip)),
            Some(Host::Ipv6(ip)) => Some(IpAddr::V6(ip)),
            Some(Host::Domain(_)) | None => None,
        };
        let rule = if !matches!(url.scheme(), "http" | "https") {
            "must begin with http:// or https://"
        } else if !url.username().is_empty() || url.password().is_some() {
            "must not hold a user name or password"
        } else if url.fragment().is_some() {
            "must not have a fragment"
        } else if url.as_str().len() > LONGEST_URL {
            return Err(format!("must not be longer than {LONGEST_URL} characters"));
        } else if address.is_some_and(|ip| !private && !is_public(ip)) {
            "must not name an address that is not public"
        } else {
            return Ok(url);
        };
        Err(rule.to_owned())
    }

    /// Reads a secret, `whsec_` and base64; `None` if it is none.
    pub fn parse_secret(text: &str) -> Option<Vec<u8>> {
        let secret = BASE64_STANDARD.decode(text.strip_prefix(SECRET_PREFIX)?).ok()?;
        (24..=64).contains(&secret.len()).then_some(secret)
    }
}

/// Whether an address belongs to a host of the public internet: IANA's special-purpose registries say which do not. Of IPv6, only what is
/// assigned for such hosts counts.
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(ip) => !matches!(
            ip.octets(),
            // This network, private, loopback, and from 224 on multicast, reserved and broadcast.
            [0 | 10 | 127 | 224.., ..]
                // Behind a provider's NAT, and private.
                | [100, 64..=127, ..] | [172, 16..=31, ..] | [192, 168, ..]
                // Link-local, where clouds keep secrets.
                | [169, 254, ..]
                // Protocol assignments, documentation, relays, benchmarks.
                | [192, 0, 0 | 2, _] | [192, 88, 99, _] | [198, 18 | 19, ..]
                | [198, 51, 100, _] | [203, 0, 113, _]
        ),
        IpAddr::V6(ip) => match ip.segments() {
            // NAT64: how hosts without IPv4 reach one with it.
            [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
                is_public(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)).into())
            }
            // Protocol assignments (Teredo among them), documentation, 6to4.
            [0x2001, 0..=0x1ff | 0xdb8, ..] | [0x2002, ..] | [0x3fff, 0..=0xfff, ..] => false,
            [first, ..] => first >> 13 == 1,
        },
    }
}

/// How the delivery of a job's callback stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, sqlx::Type, ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[sqlx(type_name = "TEXT", rename_all = "SCREAMING_SNAKE_CASE")]
pub enum CallbackState {
    /// The job has not ended.
    Waiting,
    /// It is delivered now, or will be tried again.
    Due,
    /// The receiver has taken it.
    Delivered,
    /// The receiver does not want it, or has failed too often.
    GivenUp,
}

/// What became of a job's callback.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, sqlx::FromRow, ToSchema)]
pub struct CallbackStatus {
    /// The job.
    #[schema(value_type = uuid::Uuid)]
    pub job_id: JobId,
    /// Where its end is told.
    #[schema(format = "uri")]
    pub url: String,
    /// How that stands.
    pub state: CallbackState,
    /// How often it was tried.
    #[schema(minimum = 0)]
    pub attempts: i32,
    /// When it will be tried next. While it is being tried: when that counts as lost.
    pub next_attempt_at: Option<DateTime<Utc>>,
    /// What came of the last attempt: the status that was answered, or why there is none.
    pub last_result: Option<String>,
}

/// A message that is to be delivered.
#[derive(Clone, sqlx::FromRow)]
pub struct Delivery {
    /// The job that has ended. As a job ends once, this is the message's id as well.
    pub job_id: JobId,
    /// Where to.
    pub url: String,
    /// What signs it.
    pub secret: Vec<u8>,
    /// The message: the same bytes at every attempt.
    pub payload: String,
    /// Which attempt this is, from 1.
    pub attempts: i32,
}

/// Signs a message for an attempt at this time (seconds since 1970); the header carries what comes out.
pub fn sign(secret: &[u8], id: &str, timestamp: i64, payload: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes any key");
    mac.update(format!("{id}.{timestamp}.{payload}").as_bytes());
    format!("v1,{}", BASE64_STANDARD.encode(mac.finalize().into_bytes()))
}

/// What has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub enum MessageType {
    /// The job has all its outputs.
    #[serde(rename = "job.succeeded")]
    Succeeded,
    /// The job has failed; its status says why.
    #[serde(rename = "job.failed")]
    Failed,
    /// The job was stopped.
    #[serde(rename = "job.aborted")]
    Aborted,
}

/// What a callback says.
#[derive(Serialize, ToSchema)]
pub struct JobMessage {
    /// What has happened.
    #[serde(rename = "type")]
    kind: MessageType,
    /// When it happened.
    timestamp: DateTime<Utc>,
    /// The job's status, as inspecting it shows.
    data: JobStatus,
}

impl JobMessage {
    /// What is said of a job that has ended; before, there is nothing to say.
    pub fn of(job: &Job) -> Option<Self> {
        let kind = match job.state {
            JobState::Success => MessageType::Succeeded,
            JobState::Failed => MessageType::Failed,
            JobState::Aborted => MessageType::Aborted,
            JobState::NotStarted
            | JobState::Published
            | JobState::WaitingForResources
            | JobState::Pending
            | JobState::Started => {
                return None;
            }
        };
        let timestamp: Timestamp = job.stopped_at?;
        Some(Self { kind, timestamp, data: job.clone().into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_hosts_of_the_public_internet_are_public() {
        for (address, public) in [
            ("93.184.215.14", true),
            ("100.63.255.255", true),
            ("172.32.0.1", true),
            ("192.0.1.1", true),
            ("223.255.255.255", true),
            ("0.0.0.0", false),
            ("0.1.2.3", false),
            ("10.0.0.1", false),
            ("100.64.0.1", false),
            ("100.127.255.255", false),
            ("127.0.0.1", false),
            ("127.255.255.254", false),
            ("169.254.169.254", false),
            ("172.16.0.1", false),
            ("172.31.255.255", false),
            ("192.0.0.8", false),
            ("192.0.2.1", false),
            ("192.88.99.1", false),
            ("192.168.1.1", false),
            ("198.19.0.1", false),
            ("198.51.100.1", false),
            ("203.0.113.1", false),
            ("224.0.0.1", false),
            ("240.0.0.1", false),
            ("255.255.255.255", false),
            ("2606:4700::1111", true),
            ("2a00::1", true),
            ("64:ff9b::5db8:d70e", true),
            ("64:ff9b::a00:1", false),
            ("64:ff9b:1::5db8:d70e", false),
            ("::", false),
            ("::1", false),
            ("::7f00:1", false),
            ("::ffff:127.0.0.1", false),
            ("::ffff:93.184.215.14", false),
            ("100::1", false),
            ("2001::1", false),
            ("2001:db8::1", false),
            ("2001:200::1", true),
            ("2002:7f00:1::", false),
            ("3fff::1", false),
            ("5f00::1", false),
            ("fc00::1", false),
            ("fdff::1", false),
            ("fe80::1", false),
            ("ff02::1", false),
        ] {
            assert_eq!(is_public(address.parse().unwrap()), public, "{address}");
        }
    }

    #[test]
    fn a_url_is_refused_by_the_rule_that_it_breaks() {
        let long = format!("https://example.org/{}", "a".repeat(2064));
        for (text, rule) in [
            ("https://example.org/ended?study=3", ""),
            ("HTTP://Example.org:8080", ""),
            ("https://93.184.215.14/", ""),
            ("http://localhost/", ""),
            (&long[..2083], ""),
            (&long, "longer than 2083"),
            ("", "absolute URL"),
            ("/ended", "absolute URL"),
            ("https://", "absolute URL"),
            ("https://example.org:70000/", "absolute URL"),
            ("ftp://example.org/", "http:// or https://"),
            ("file:///etc/passwd", "http:// or https://"),
            ("https://ada@example.org/", "user name or password"),
            ("https://:secret@example.org/", "user name or password"),
            ("https://example.org/#end", "fragment"),
            ("http://127.0.0.1/", "not public"),
            ("http://127.1/", "not public"),
            ("http://2130706433/", "not public"),
            ("http://0x7f.0.0.1/", "not public"),
            ("http://0177.0.0.1/", "not public"),
            ("http://１２７.０.０.１/", "not public"),
            ("http://169.254.169.254/latest/meta-data", "not public"),
            ("http://[::1]/", "not public"),
            ("http://[::ffff:10.0.0.1]/", "not public"),
            ("http://[fd00::1]:8080/", "not public"),
        ] {
            match Callback::parse_url(text, false) {
                Ok(_) => assert_eq!(rule, "", "{text}"),
                Err(said) => assert!(!rule.is_empty() && said.contains(rule), "{text}: {said}"),
            }
        }
        assert!(Callback::parse_url("http://127.0.0.1:8080/", true).is_ok());
        let normal = Callback::parse_url("HTTP://Example.org:80/a b?ü", false).unwrap();
        assert_eq!(normal.as_str(), "http://example.org/a%20b?%C3%BC");
    }

    #[test]
    fn a_secret_has_24_to_64_bytes() {
        let text = |bytes: usize| format!("whsec_{}", BASE64_STANDARD.encode(vec![7; bytes]));
        for bytes in [24, 25, 26, 64] {
            assert_eq!(Callback::parse_secret(&text(bytes)), Some(vec![7; bytes]));
        }
        for wrong in [
            &text(23),
            &text(65),
            "whsec_",
            "",
            &text(24)[6..],
            &(text(24) + "="),
            "whsec_not base64",
        ] {
            assert_eq!(Callback::parse_secret(wrong), None, "{wrong}");
        }
    }
    /// The example by which implementations of Standard Webhooks test themselves.
    #[test]
    fn a_known_message_has_the_known_signature() {
        let secret = Callback::parse_secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let signature =
            sign(&secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, r#"{"test": 2432232314}"#);
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }
}

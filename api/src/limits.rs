//! How much one caller may ask for at once. What is bounded elsewhere: bodies in [`crate::request`], connections and slow senders in
//! [`crate::app`].

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use actix_web::{
    Error, HttpMessage,
    body::{BodySize, BoxBody, MessageBody},
    dev::{ServiceRequest, ServiceResponse},
    http::Method,
    middleware::Next,
    web::{Bytes, Data},
};

use crate::{
    auth::Caller,
    domain::id::UserId,
    error::{ApiError, ErrorCode, Result},
    jobs::Prefer,
};

/// Requests of one caller that are being answered.
pub const REQUESTS: usize = 64;

/// Answers of one caller that take their time: streams, and waits for news.
pub const STREAMS: usize = 1000;

/// Target and headers of a request, in bytes. The framework reads no more than 128 KiB and 96 headers.
pub const HEAD: usize = 16 << 10;

/// Who has how many requests in flight.
#[derive(Default)]
pub struct InFlight(Mutex<HashMap<(UserId, Kind), usize>>);

/// Requests that end soon, and those that are meant to last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Request,
    Stream,
}

impl Kind {
    fn of(request: &ServiceRequest) -> Result<Self> {
        let route = request.match_pattern().unwrap_or_default();
        let streams = route.ends_with("/logstream") || route.ends_with("/events");
        // Elsewhere nobody looks at what is preferred.
        let may_wait = route.ends_with(":inspect")
            || request.method() == Method::GET && route.ends_with("/jobs/{job_id:[^/:]+}");
        let lasts = streams || may_wait && Prefer::of(request.request())?.waits();
        Ok(if lasts { Self::Stream } else { Self::Request })
    }

    const fn limit(self) -> usize {
        match self {
            Self::Request => REQUESTS,
            Self::Stream => STREAMS,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Request => "requests",
            Self::Stream => "streams and waits",
        }
    }
}

/// A place among those in flight, given back when dropped.
struct Place {
    all: Arc<InFlight>,
    key: (UserId, Kind),
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut places = self.all.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = places.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                places.remove(&self.key);
            }
        }
    }
}

impl InFlight {
    fn take(self: &Arc<Self>, user: UserId, kind: Kind) -> Result<Place> {
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = places.entry((user, kind)).or_default();
        if *count >= kind.limit() {
            let message = format!(
                "you have {} {} in flight, and there may be no more; wait for one of them to end",
                kind.limit(),
                kind.name()
            );
            return Err(ApiError::new(ErrorCode::TooManyRequests, message));
        }
        *count += 1;
        Ok(Place { all: self.clone(), key: (user, kind) })
    }
}

/// An answer that holds its place until it has been sent.
pub struct Held {
    body: BoxBody,
    _place: Option<Place>,
}

impl MessageBody for Held {
    type Error = <BoxBody as MessageBody>::Error;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Self::Error>>> {
        self.body.as_pin_mut().poll_next(context)
    }
}

/// Refuses requests whose head is too large, and those of callers who have too many in flight. Stands behind authentication.
pub async fn limit<B: MessageBody + 'static>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<Held>, Error> {
    let headers = request.headers().iter();
    let head = headers.fold(request.uri().to_string().len(), |sum, (name, value)| {
        sum + name.as_str().len() + value.len()
    });
    if head > HEAD {
        let message =
            format!("target and headers must not be larger than {HEAD} bytes, are {head}");
        return Err(ApiError::new(ErrorCode::HeadTooLarge, message).into());
    }
    let caller = request.extensions().get::<Caller>().map(Caller::id);
    let all = request.app_data::<Data<InFlight>>().cloned();
    let place = match caller.zip(all) {
        Some((user, all)) => Some(all.take(user, Kind::of(&request)?)?),
        None => None,
    };
    let response = next.call(request).await?;
    Ok(response.map_body(|_, body| Held { body: body.boxed(), _place: place }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted_by_user_and_kind_and_given_back() {
        let all = Arc::new(InFlight::default());
        let take = |user, kind| all.take(UserId(user), kind);
        let mut held: Vec<_> = (0..STREAMS).map(|_| take(1, Kind::Stream).ok().unwrap()).collect();
        let refused = take(1, Kind::Stream).err().unwrap().to_string();
        assert!(refused.contains("1000 streams and waits in flight"), "{refused}");
        assert!(take(1, Kind::Request).is_ok(), "streams count for themselves");
        assert!(take(2, Kind::Stream).is_ok(), "so does everybody");
        held.pop();
        assert!(take(1, Kind::Stream).is_ok());
        drop(held);
        assert!(all.0.lock().unwrap().is_empty(), "nothing is remembered of who is gone");
    }
}

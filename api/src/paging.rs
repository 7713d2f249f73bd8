//! Pages of lists: oSPARC's limit and offset, with relative links that keep the other parameters of the query.

use std::borrow::Cow;

use actix_web::HttpRequest;
use serde::Serialize;
use utoipa::{
    IntoParams, PartialSchema, ToSchema,
    openapi::{ArrayBuilder, ObjectBuilder, Ref, RefOr, Schema, schema::Type},
};

use crate::{
    error::Result,
    request::{Params, from_request},
};

/// Which page is asked for.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Paging {
    /// How many items at most.
    #[param(minimum = 1, maximum = 50, default = 20, required = false)]
    pub limit: i64,
    /// How many items to skip.
    #[param(minimum = 0, default = 0, required = false)]
    pub offset: i64,
    /// Path and query as they came, for the links.
    #[param(ignore)]
    path: String,
    #[param(ignore)]
    query: String,
}

from_request!(Paging);

impl Paging {
    fn of(request: &HttpRequest) -> Result<Self> {
        let params = Params::of_query(request)?;
        let within = |from: i64, to: i64| {
            move |text: &str| {
                text.parse::<i64>().ok().filter(|number| (from..=to).contains(number)).ok_or(())
            }
        };
        Ok(Self {
            limit: params
                .get("limit", "must be a number from 1 to 50", within(1, 50))?
                .unwrap_or(20),
            offset: params
                .get("offset", "must be a number from 0", within(0, i64::MAX))?
                .unwrap_or(0),
            // Solver keys are shown with their slashes, however they came; both forms are routes.
            path: request.path().replace("%2F", "/").replace("%2f", "/"),
            query: request.query_string().to_owned(),
        })
    }

    /// Cuts the page out of the whole list.
    pub fn cut<T>(&self, items: Vec<T>) -> Page<T> {
        let total = i64::try_from(items.len()).unwrap_or(i64::MAX);
        let number = |count: i64| usize::try_from(count).unwrap_or(usize::MAX);
        let shown = items.into_iter().skip(number(self.offset)).take(number(self.limit));
        self.page(shown.collect(), total)
    }

    /// Makes the page of what was found.
    pub fn page<T>(&self, items: Vec<T>, total: i64) -> Page<T> {
        let last = (total - 1).max(0) / self.limit * self.limit;
        let link = |offset: i64| Some(self.link(offset));
        let links = Links {
            first: link(0),
            last: link(last),
            this: link(self.offset),
            next: self.offset.checked_add(self.limit).filter(|next| *next < total).and_then(link),
            prev: (self.offset > 0)
                .then(|| (self.offset - self.limit).clamp(0, last))
                .and_then(link),
        };
        Page { items, total, limit: self.limit, offset: self.offset, links }
    }

    fn link(&self, offset: i64) -> String {
        let others = self.query.split('&').filter(|pair| {
            !pair.is_empty() && !matches!(pair.split('=').next(), Some("limit" | "offset"))
        });
        let mut query: Vec<Cow<'_, str>> = others.map(Cow::from).collect();
        query.push(format!("limit={}", self.limit).into());
        query.push(format!("offset={offset}").into());
        format!("{}?{}", self.path, query.join("&"))
    }
}

/// Links to other pages, relative to the server.
#[derive(Debug, Serialize, ToSchema)]
pub struct Links {
    first: Option<String>,
    last: Option<String>,
    #[serde(rename = "self")]
    this: Option<String>,
    /// Absent on the last page.
    next: Option<String>,
    /// Absent on the first page.
    prev: Option<String>,
}

/// One page of a list.
#[derive(Debug, Serialize)]
pub struct Page<T> {
    items: Vec<T>,
    total: i64,
    limit: i64,
    offset: i64,
    links: Links,
}

// Written by hand, because the derive would inline the items, and generated clients would get a type `PageJobItemsInner`.
impl<T: ToSchema> ToSchema for Page<T> {
    fn name() -> Cow<'static, str> {
        format!("Page_{}_", T::name()).into()
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push((T::name().into(), T::schema()));
        T::schemas(schemas);
        schemas.push((Links::name().into(), Links::schema()));
        Links::schemas(schemas);
    }
}

impl<T: ToSchema> PartialSchema for Page<T> {
    fn schema() -> RefOr<Schema> {
        let count =
            |minimum: i64| ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(minimum));
        ObjectBuilder::new()
            .description(Some("One page of a list."))
            .property("items", ArrayBuilder::new().items(Ref::from_schema_name(T::name())))
            .property("total", count(0).description(Some("Number of items on all pages.")))
            .property("limit", count(1).description(Some("Number of items a page may hold.")))
            .property("offset", count(0).description(Some("Number of items before this page.")))
            .property("links", Ref::from_schema_name(Links::name()))
            .required("items")
            .required("total")
            .required("limit")
            .required("offset")
            .required("links")
            .into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paging(limit: i64, offset: i64, query: &str) -> Paging {
        Paging { limit, offset, path: "/v0/x".into(), query: query.into() }
    }

    fn links(page: &Page<()>) -> [Option<&str>; 4] {
        let links = &page.links;
        [&links.first, &links.last, &links.next, &links.prev].map(Option::as_deref)
    }

    #[test]
    fn links_lead_through_all_pages_and_keep_the_query() {
        let page = paging(20, 20, "a=b%2Fc&limit=20&offset=20").page(vec![], 45);
        assert_eq!(
            links(&page),
            [
                Some("/v0/x?a=b%2Fc&limit=20&offset=0"),
                Some("/v0/x?a=b%2Fc&limit=20&offset=40"),
                Some("/v0/x?a=b%2Fc&limit=20&offset=40"),
                Some("/v0/x?a=b%2Fc&limit=20&offset=0")
            ]
        );
        assert_eq!(links(&paging(20, 40, "").page(vec![], 45))[2], None);
    }

    #[test]
    fn an_empty_list_is_one_page() {
        let page = paging(20, 0, "").page(vec![], 0);
        assert_eq!(
            links(&page),
            [Some("/v0/x?limit=20&offset=0"), Some("/v0/x?limit=20&offset=0"), None, None]
        );
        assert_eq!(
            links(&paging(20, 60, "").page(vec![], 30))[3],
            Some("/v0/x?limit=20&offset=20")
        );
        assert_eq!(links(&paging(50, i64::MAX, "").page(vec![], 1))[2], None);
    }
}

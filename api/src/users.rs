//! Who you are.

#![expect(unreachable_pub, reason = "the route macros nest the handlers")]

use actix_web::{
    get, put,
    web::{Data, Json},
};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    auth::Caller,
    domain::{
        id::UserId,
        user::{Language, Name, ProfileUpdate, User},
    },
    error::{Errors, Result},
    request::Body,
    store::Db,
};

/// You.
#[derive(Serialize, ToSchema)]
pub struct Profile {
    #[schema(value_type = i64, minimum = 1)]
    id: UserId,
    /// Your e-mail address.
    #[schema(format = "email")]
    login: String,
    #[schema(value_type = Option<String>, max_length = 255)]
    first_name: Option<Name>,
    #[schema(value_type = Option<String>, max_length = 255)]
    last_name: Option<Name>,
    /// What a front end should speak with you.
    language: Option<Language>,
    role: UserRole,
    groups: Option<Groups>,
    /// Names your picture in oSPARC's front end; not used here.
    gravatar_id: Option<String>,
}

/// What you may do.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[schema(as = UserRoleEnum)]
pub enum UserRole {
    /// Run published solvers on your own files.
    User,
}

/// Whom you share with.
#[derive(Serialize, ToSchema)]
pub struct Groups {
    me: UsersGroup,
    organizations: Vec<UsersGroup>,
    all: UsersGroup,
}

/// A group of users.
#[derive(Serialize, ToSchema)]
pub struct UsersGroup {
    gid: String,
    label: String,
    description: Option<String>,
}

impl From<User> for Profile {
    fn from(user: User) -> Self {
        let group = |gid: String, label: &str, description: &str| UsersGroup {
            gid,
            label: label.to_owned(),
            description: Some(description.to_owned()),
        };
        let me = group(user.group().to_string(), &user.email, "You alone.");
        Self {
            id: user.id,
            first_name: user.first_name,
            last_name: user.last_name,
            language: user.language,
            role: UserRole::User,
            groups: Some(Groups {
                me,
                organizations: Vec::new(),
                all: group("1".to_owned(), "Everyone", "All users."),
            }),
            gravatar_id: None,
            login: user.email,
        }
    }
}

/// Get your profile.
#[utoipa::path(tag = "users", responses((status = 200, description = "You.", body = Profile), Errors))]
#[get("/v0/me")]
pub async fn get_my_profile(caller: Caller) -> Result<Json<Profile>> {
    Ok(Json(caller.0.into()))
}

/// Change your profile.
///
/// Only what is given changes.
#[utoipa::path(tag = "users", request_body = ProfileUpdate, responses((status = 200, description = "You, as you are now.", body = Profile), Errors))]
#[put("/v0/me")]
pub async fn update_my_profile(
    body: Body<ProfileUpdate>,
    caller: Caller,
    db: Data<Db>,
) -> Result<Json<Profile>> {
    Ok(Json(db.user_change(caller.id(), &body.0).await?.into()))
}

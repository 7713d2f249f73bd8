//! Who you are.

#![expect(unreachable_pub, reason = "the route macros nest the handlers")]

use actix_web::{get, web::Json};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    auth::Caller,
    domain::{id::UserId, user::User},
    error::{Errors, Result},
};

/// You.
#[derive(Serialize, ToSchema)]
pub struct Profile {
    #[schema(value_type = i64, minimum = 1)]
    id: UserId,
    /// Your e-mail address.
    #[schema(format = "email")]
    login: String,
    first_name: Option<String>,
    last_name: Option<String>,
    role: UserRole,
    groups: Option<Groups>,
    /// Names your picture in oSPARC's front end; not used here.
    #[schema(max_length = 40)]
    gravatar_id: Option<String>,
}

/// What you may do: here everybody is a user.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[schema(as = UserRoleEnum)]
pub enum UserRole {
    Anonymous,
    Guest,
    /// Run published solvers on your own files.
    User,
    Tester,
    ProductOwner,
    Admin,
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
        Self {
            id: user.id,
            first_name: None,
            last_name: None,
            role: UserRole::User,
            groups: Some(Groups {
                // Group 1 is everybody; each user's own group follows from their id.
                me: group((user.id.0 + 1).to_string(), &user.email, "You alone."),
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

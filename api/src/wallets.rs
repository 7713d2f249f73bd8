//! Money, as a service has it that runs on its owner's machines: everybody has a wallet, nothing has a price, and what jobs have used of
//! the machine is in the books all the same.

#![expect(unreachable_pub, reason = "the route macros nest the handlers")]
#![expect(clippy::struct_field_names, reason = "the names are oSPARC's")]

use actix_web::{
    HttpRequest, get, post,
    web::{Data, Json},
};
use chrono::{DateTime, NaiveDate, Utc};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::{
    auth::Caller,
    domain::{
        id::UserId,
        resources::Resources,
        usage::{CpuSource, Usage},
        user::User,
    },
    error::{ApiError, ErrorCode, Errors, FieldError, Result},
    jobs::JobPath,
    paging::{Page, Paging},
    request::{Body, Params, from_request, whole},
    solvers::ReleasePath,
    store::Db,
};

from_request!(WalletPath, LicensedItemPath);

/// A page of licensed items. An alias, because utoipa would look for a derive on `Page<LicensedItem>`.
type LicensedItemPage = Page<LicensedItem>;

/// The one pricing plan, and its one unit.
const FREE: i64 = 1;

/// Names a wallet in a path.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
pub struct WalletPath {
    /// Identifies the wallet.
    #[param(minimum = 1)]
    pub wallet_id: i64,
}

impl WalletPath {
    fn of(request: &HttpRequest) -> Result<Self> {
        Self::read(&Params::of_path(request)?)
    }

    fn read(params: &Params) -> Result<Self> {
        let positive = |text: &str| text.parse().ok().filter(|id| *id > 0).ok_or(());
        Ok(Self { wallet_id: params.need("wallet_id", "must be a number from 1", positive)? })
    }

    /// The wallet, if it is the caller's: others do not exist.
    fn load(&self, caller: &Caller) -> Result<Wallet> {
        let wallet = Wallet::from(&caller.0);
        if wallet.wallet_id.0 == self.wallet_id {
            return Ok(wallet);
        }
        Err(ApiError::new(ErrorCode::NotFound, format!("wallet `{}` not found", self.wallet_id)))
    }
}

/// Names a licensed item in a path.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
pub struct LicensedItemPath {
    /// Identifies the wallet.
    #[param(minimum = 1)]
    pub wallet_id: i64,
    /// Identifies the licensed item.
    pub licensed_item_id: Uuid,
}

impl LicensedItemPath {
    fn of(request: &HttpRequest) -> Result<Self> {
        let params = Params::of_path(request)?;
        let WalletPath { wallet_id } = WalletPath::read(&params)?;
        let licensed_item_id = params.need("licensed_item_id", "must be a UUID", str::parse)?;
        Ok(Self { wallet_id, licensed_item_id })
    }
}

/// What pays for jobs. Every user has one, and it is never charged.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = WalletGetWithAvailableCreditsLegacy)]
pub struct Wallet {
    #[schema(value_type = i64, minimum = 1)]
    wallet_id: UserId,
    #[schema(min_length = 1, max_length = 100)]
    name: &'static str,
    description: Option<&'static str>,
    /// Your own group, as your profile shows it.
    #[schema(minimum = 1)]
    owner: i64,
    thumbnail: Option<String>,
    status: WalletStatus,
    created: DateTime<Utc>,
    modified: DateTime<Utc>,
    /// Always 0: there are no credits, and none are needed.
    #[schema(minimum = 0)]
    available_credits: f64,
}

/// Whether a wallet can pay.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum WalletStatus {
    /// It can.
    Active,
}

impl From<&User> for Wallet {
    fn from(user: &User) -> Self {
        Self {
            wallet_id: user.id,
            name: "Default wallet",
            description: Some("Nothing has a price here."),
            owner: user.group(),
            thumbnail: None,
            status: WalletStatus::Active,
            created: user.created_at,
            modified: user.created_at,
            available_credits: 0.0,
        }
    }
}

/// What a credit costs.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = GetCreditPriceLegacy)]
pub struct CreditPrice {
    product_name: &'static str,
    /// Always null: credits are not sold.
    #[schema(required, minimum = 0)]
    usd_per_credit: Option<f64>,
    /// Always null: credits are not sold.
    #[schema(required, minimum = 0)]
    min_payment_amount_usd: Option<i64>,
}

/// What a run of a release costs.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = ServicePricingPlanGetLegacy)]
pub struct PricingPlan {
    /// Always 1: there is one plan.
    #[schema(minimum = 1)]
    pricing_plan_id: i64,
    display_name: &'static str,
    description: &'static str,
    classification: PricingPlanClassification,
    /// When the release was published.
    created_at: DateTime<Utc>,
    pricing_plan_key: &'static str,
    /// One: what a run reserves is up to the release.
    pricing_units: Vec<PricingUnit>,
}

/// What a plan is about.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum PricingPlanClassification {
    /// Shares of a machine.
    Tier,
}

/// A share of the machine and its price.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = PricingUnitGetLegacy)]
pub struct PricingUnit {
    /// Always 1: there is one unit.
    #[schema(minimum = 1)]
    pricing_unit_id: i64,
    unit_name: &'static str,
    unit_extra_info: UnitExtraInfo,
    /// Always 0.
    #[schema(minimum = 0)]
    current_cost_per_unit: f64,
    default: bool,
    /// Of a job that has run: what it has used.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    usage: Option<JobUsage>,
}

/// What a run reserves.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
#[schema(as = UnitExtraInfoTier)]
pub struct UnitExtraInfo {
    /// CPUs, rounded up.
    #[schema(minimum = 0)]
    cpu: i64,
    /// Bytes of memory.
    #[schema(minimum = 0)]
    ram: i64,
    /// Bytes of a GPU's memory: GPUs are given as a whole, and theirs is not known.
    #[schema(minimum = 0)]
    vram: i64,
}

/// What a job has used of the machine.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct JobUsage {
    #[schema(minimum = 0)]
    cpu_seconds: f64,
    /// Where `cpuSeconds` come from.
    cpu_source: CpuSource,
    /// How long its container ran.
    #[schema(minimum = 0)]
    wall_seconds: f64,
    /// The most memory it held at once, in bytes, files cached by the kernel included; null if it was too short to be seen.
    #[schema(minimum = 0)]
    peak_memory_bytes: Option<i64>,
}

impl From<Usage> for JobUsage {
    fn from(usage: Usage) -> Self {
        Self {
            cpu_seconds: usage.cpu_seconds(),
            cpu_source: usage.cpu_source,
            wall_seconds: usage.wall_seconds(),
            peak_memory_bytes: usage.peak_memory,
        }
    }
}

impl PricingUnit {
    fn new(reserved: Resources, usage: Option<Usage>) -> Self {
        Self {
            pricing_unit_id: FREE,
            unit_name: "Free of charge",
            unit_extra_info: UnitExtraInfo {
                cpu: (reserved.nano_cpus + 999_999_999) / 1_000_000_000,
                ram: reserved.memory_bytes,
                vram: 0,
            },
            current_cost_per_unit: 0.0,
            default: true,
            usage: usage.map(JobUsage::from),
        }
    }
}

/// What may be rented by the seat.
#[derive(Serialize, ToSchema)]
#[schema(as = LicensedItemGet)]
pub struct LicensedItem {
    licensed_item_id: Uuid,
    key: String,
    #[schema(pattern = r"^\d+\.\d+\.\d+$")]
    version: String,
    display_name: String,
    licensed_resource_type: LicensedResourceType,
    licensed_resources: Vec<LicensedResource>,
    #[schema(minimum = 1)]
    pricing_plan_id: i64,
    is_hidden_on_market: bool,
    created_at: DateTime<Utc>,
    modified_at: DateTime<Utc>,
}

/// A kind of licensed resource.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum LicensedResourceType {
    /// A virtual human.
    VipModel,
}

/// What a licence is for.
#[derive(Serialize, ToSchema)]
pub struct LicensedResource {
    source: LicensedResourceSource,
    #[schema(min_length = 1, max_length = 100)]
    category_id: String,
    category_display: String,
    #[schema(required, format = "uri", min_length = 1, max_length = 2083)]
    terms_of_use_url: Option<String>,
}

/// Where a licensed resource comes from.
#[derive(Serialize, ToSchema)]
pub struct LicensedResourceSource {
    id: i64,
    description: String,
    thumbnail: String,
    features: LicensedResourceSourceFeatures,
    #[schema(required)]
    doi: Option<String>,
    license_key: String,
    license_version: String,
    protection: Protection,
    #[schema(required, format = "uri", min_length = 1, max_length = 2083)]
    available_from_url: Option<String>,
}

/// How a licensed resource is protected.
#[derive(Serialize, ToSchema)]
#[schema(as = LicensedResourceSourceProtection)]
pub enum Protection {
    /// By a code.
    Code,
    /// By a payment.
    PayPal,
}

/// Features of a virtual human.
#[derive(Serialize, ToSchema)]
#[schema(as = LicensedResourceSourceFeaturesDict)]
pub struct LicensedResourceSourceFeatures {
    #[schema(nullable = false)]
    age: Option<String>,
    date: NaiveDate,
    #[schema(nullable = false)]
    ethnicity: Option<String>,
    #[schema(nullable = false)]
    functionality: Option<String>,
    #[schema(nullable = false)]
    height: Option<String>,
    #[schema(nullable = false)]
    name: Option<String>,
    #[schema(nullable = false)]
    sex: Option<String>,
    #[schema(nullable = false)]
    species: Option<String>,
    #[schema(nullable = false)]
    version: Option<String>,
    #[schema(nullable = false)]
    weight: Option<String>,
}

/// How many seats are wanted.
#[derive(Deserialize, ToSchema)]
#[schema(example = json!({"number_of_seats": 1, "service_run_id": "run"}))]
pub struct LicensedItemCheckoutData {
    #[schema(minimum = 1)]
    #[serde(deserialize_with = "whole::<{ i64::MIN }, { i64::MAX }, _, _>")]
    number_of_seats: i64,
    /// Who sits there.
    #[expect(dead_code, reason = "checked, then without effect: there are no licensed items")]
    service_run_id: String,
}

/// Seats that are taken.
#[derive(Serialize, ToSchema)]
#[schema(as = LicensedItemCheckoutGet)]
pub struct LicensedItemCheckout {
    licensed_item_checkout_id: Uuid,
    licensed_item_id: Uuid,
    key: String,
    #[schema(pattern = r"^\d+\.\d+\.\d+$")]
    version: String,
    #[schema(minimum = 1)]
    wallet_id: i64,
    #[schema(minimum = 1)]
    user_id: i64,
    product_name: String,
    started_at: DateTime<Utc>,
    #[schema(required)]
    stopped_at: Option<DateTime<Utc>>,
    num_of_seats: i64,
}

/// Get your wallet.
#[utoipa::path(tag = "wallets", responses((status = 200, description = "Your wallet.", body = Wallet), Errors))]
#[get("/v0/wallets/default")]
pub async fn get_default_wallet(caller: Caller) -> Json<Wallet> {
    Json(Wallet::from(&caller.0))
}

/// Get a wallet.
#[utoipa::path(tag = "wallets", params(WalletPath), responses((status = 200, description = "The wallet.", body = Wallet), Errors))]
#[get("/v0/wallets/{wallet_id}")]
pub async fn get_wallet(path: WalletPath, caller: Caller) -> Result<Json<Wallet>> {
    Ok(Json(path.load(&caller)?))
}

/// List what a wallet may rent by the seat.
///
/// There is nothing of the kind here: the list is empty.
#[utoipa::path(tag = "wallets", params(WalletPath, Paging), responses((status = 200, description = "An empty page.", body = LicensedItemPage), Errors))]
#[get("/v0/wallets/{wallet_id}/licensed-items")]
pub async fn get_available_licensed_items_for_wallet(
    path: WalletPath,
    paging: Paging,
    caller: Caller,
) -> Result<Json<LicensedItemPage>> {
    path.load(&caller)?;
    Ok(Json(paging.page(Vec::new(), 0)))
}

/// Take seats of a licensed item.
///
/// There are no licensed items here: the answer is always 404.
#[utoipa::path(tag = "wallets", params(LicensedItemPath), request_body = LicensedItemCheckoutData, responses((status = 200, description = "The seats.", body = LicensedItemCheckout), Errors))]
#[post("/v0/wallets/{wallet_id}/licensed-items/{licensed_item_id}/checkout")]
pub async fn checkout_licensed_item(
    path: LicensedItemPath,
    body: Body<LicensedItemCheckoutData>,
    caller: Caller,
) -> Result<Json<LicensedItemCheckout>> {
    let seats = body.0.number_of_seats;
    if seats < 1 {
        let loc = ["body", "number_of_seats"];
        return Err(FieldError::new("greater_than", &loc, seats, "must be at least 1").into());
    }
    WalletPath { wallet_id: path.wallet_id }.load(&caller)?;
    let message = format!("licensed item `{}` not found: there are none", path.licensed_item_id);
    Err(ApiError::new(ErrorCode::NotFound, message))
}

/// Get the price of a credit.
///
/// Credits are not sold here: it is null.
#[utoipa::path(tag = "credits", responses((status = 200, description = "The price.", body = CreditPrice), Errors))]
#[get("/v0/credits/price")]
pub async fn get_credits_price(_: Caller) -> Json<CreditPrice> {
    Json(CreditPrice {
        product_name: "solverd",
        usd_per_credit: None,
        min_payment_amount_usd: None,
    })
}

/// Get what a run of a release costs.
///
/// Nothing; the plan says what a run reserves of the machine.
#[utoipa::path(tag = "solvers", params(ReleasePath), responses((status = 200, description = "The plan.", body = PricingPlan), Errors))]
#[get("/v0/solvers/{solver_key:.+}/releases/{version}/pricing_plan")]
pub async fn get_solver_pricing_plan(
    path: ReleasePath,
    _: Caller,
    db: Data<Db>,
) -> Result<Json<PricingPlan>> {
    let release = db.release_get(&path.solver_key, &path.version).await?;
    Ok(Json(PricingPlan {
        pricing_plan_id: FREE,
        display_name: "Free of charge",
        description: "Nothing has a price here.",
        classification: PricingPlanClassification::Tier,
        created_at: db.release_published_at(&path.solver_key, &path.version).await?,
        pricing_plan_key: "free",
        pricing_units: vec![PricingUnit::new(release.resources(), None)],
    }))
}

/// Get the wallet that pays for a job.
#[utoipa::path(tag = "jobs", params(JobPath), responses((status = 200, description = "Your wallet.", body = Wallet), Errors))]
#[get("/v0/solvers/{solver_key:.+}/releases/{version}/jobs/{job_id:[^/:]+}/wallet")]
pub async fn get_job_wallet(path: JobPath, caller: Caller, db: Data<Db>) -> Result<Json<Wallet>> {
    path.load(&caller, &db).await?;
    Ok(Json(Wallet::from(&caller.0)))
}

/// Get what a job costs.
///
/// Nothing; the answer says what the job reserves of the machine and, once it has ended, what it has used.
#[utoipa::path(tag = "jobs", params(JobPath), responses((status = 200, description = "The unit, and what was used.", body = PricingUnit), Errors))]
#[get("/v0/solvers/{solver_key:.+}/releases/{version}/jobs/{job_id:[^/:]+}/pricing_unit")]
pub async fn get_job_pricing_unit(
    path: JobPath,
    caller: Caller,
    db: Data<Db>,
) -> Result<Json<PricingUnit>> {
    let job = path.load(&caller, &db).await?;
    Ok(Json(PricingUnit::new(job.resources, db.job_usage(job.id).await?)))
}

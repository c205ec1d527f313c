//! Steps of a login against the demo's API and provider, and against what an attacker would bring.

use super::*;
use crate::control::fake_api::within;
use crate::control::redis_server::{self, RedisServer};
use crate::demo::spec::{Account, ApiMood, SandboxSpec, WorldSpec};
use crate::demo::world::World;
use crate::login::flow::FlowCookies;
use crate::request_id::RequestIds;
use url::Url;

const KEY: &str = "a-key-of-these-tests-and-of-nothing-else";
const HOST: &str = "3000-priv.proxy.localhost:4000";
const BASE: &str = "proxy.localhost:4000";
const IP: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

fn world() -> World {
    let sandboxes = vec![SandboxSpec::private("priv", "t"), SandboxSpec::private("other", "t")];
    let accounts = vec![Account::new("owner", &["priv"]), Account::new("stranger", &[])];
    World::start(WorldSpec { sandboxes, accounts, ..WorldSpec::default() }).expect("loopback")
}

/// As the environment would have it, with nothing said about a provider.
fn silent(mode: CookieMode) -> LoginSettings {
    LoginSettings {
        scheme: if mode == CookieMode::Shared { Scheme::Http } else { Scheme::Https },
        oidc: Oidc {
            client_id: None,
            client_secret: None,
            domain: None,
            public_domain: None,
            audience: None,
        },
        cookie_mode: mode,
        cookie_domain: None,
        keys: vec![Secret::new(KEY)],
    }
}

fn login(world: &World, settings: LoginSettings) -> Login {
    let key = Secret::new(world.proxy_key());
    let api = Api::new(&world.api_url(), &key, Duration::from_secs(10), Log::discard()).expect("settings");
    Login::new(settings, Arc::new(api), None, Duration::from_secs(10), Log::discard()).expect("settings")
}

fn shared(world: &World) -> Login {
    login(world, silent(CookieMode::Shared))
}

/// A login that has left for the provider.
struct Left {
    authorize: Url,
    /// Name and value.
    cookie: String,
}

async fn leave(login: &Login, host: &str, path: &str) -> Result<Left, LoginFault> {
    let sandbox = SandboxId::parse(b"priv").expect("an id");
    let Redirect { location, set_cookies } = login.start(host, &sandbox, path).await?;
    let [cookie] = set_cookies.as_slice() else { panic!("one cookie: {set_cookies:?}") };
    let cookie = cookie.split(';').next().unwrap_or_default().to_owned();
    Ok(Left { authorize: Url::parse(&location).expect("a URL"), cookie })
}

impl Left {
    fn parameter(&self, name: &str) -> String {
        let found = self.authorize.query_pairs().find(|(n, _)| n == name);
        found.map(|(_, value)| value.into_owned()).unwrap_or_default()
    }

    /// Presses a button of the provider's page; the query of the callback.
    async fn decide(&self, account: &str) -> String {
        let decide = self.authorize.as_str().replace("/authorize?", "/decide?");
        let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).no_proxy();
        let client = client.build().expect("a client");
        let answer = client.get(format!("{decide}&account={account}")).send().await.expect("it answers");
        let location = answer.headers()["location"].to_str().expect("ASCII").to_owned();
        Url::parse(&location).expect("a URL").query().unwrap_or_default().to_owned()
    }
}

async fn back(login: &Login, query: &str, cookies: &str) -> Result<Redirect, LoginFault> {
    login.callback(BASE, query, cookies, IP).await
}

fn fault_of(result: Result<Redirect, LoginFault>) -> LoginFault {
    result.expect_err("refused")
}

#[tokio::test]
async fn a_browser_is_sent_with_pkce_and_the_settings_of_the_api() {
    let world = world();
    let left = leave(&shared(&world), HOST, "/a?b=c").await.expect("it leaves");
    let issuer = format!("http://{}/oidc/authorize", world.api_addr());
    assert!(left.authorize.as_str().starts_with(&issuer), "{}", left.authorize);
    for (name, value) in [
        ("client_id", "daytona"),
        ("audience", "daytona"),
        ("response_type", "code"),
        ("scope", "openid profile"),
        ("code_challenge_method", "S256"),
        ("redirect_uri", "http://proxy.localhost:4000/callback"),
    ] {
        assert_eq!(left.parameter(name), value, "{name}");
    }
    assert_eq!(left.parameter("code_challenge").len(), 43);
    assert!(!left.parameter("nonce").is_empty());
    let config =
        world.log(|log| log.api().filter(|r| r.line == "GET /api/config").cloned().collect::<Vec<_>>());
    assert_eq!((config.len(), config[0].authorization.as_str()), (1, ""), "the page is for all: no key");
}

#[tokio::test]
async fn a_login_ends_with_v0190s_cookie_at_the_page_it_began_at() {
    let world = world();
    let login = shared(&world);
    let left = leave(&login, "3000-PRIV.Proxy.localhost:4000", "/a?b=c").await.expect("it leaves");
    let query = left.decide("owner").await;
    let Redirect { location, set_cookies } = back(&login, &query, &left.cookie).await.expect("it ends");
    assert_eq!(location, "http://3000-priv.proxy.localhost:4000/a?b=c");
    let [auth, gone] = set_cookies.as_slice() else { panic!("two cookies") };
    let (pair, attributes) = auth.split_once("; ").expect("attributes");
    assert_eq!(attributes, "Path=/; Domain=proxy.localhost; Max-Age=3600; HttpOnly; SameSite=Lax");
    let (name, value) = pair.split_once('=').expect("a pair");
    assert_eq!(name, "daytona-sandbox-auth-priv");
    let value = cookie::unescape(value.as_bytes()).expect("escaped");
    let keys = CookieKeys::new(KEY, []);
    let opened = keys.open(name, &value, now(), cookie::AUTH_MAX_AGE).expect("signed with the service key");
    assert_eq!(opened.value.as_slice(), b"priv");
    let flow_name = left.cookie.split('=').next().unwrap_or_default();
    let wanted = "=; Path=/callback; Domain=proxy.localhost; Max-Age=0; HttpOnly; SameSite=Lax";
    assert_eq!(*gone, format!("{flow_name}{wanted}"));
}

#[tokio::test]
async fn an_operators_cookie_domain_and_https_are_in_the_cookies() {
    let world = world();
    let mut settings = silent(CookieMode::Shared);
    (settings.cookie_domain, settings.scheme) = (Some(".example.test".into()), Scheme::Https);
    let login = login(&world, settings);
    let left = leave(&login, HOST, "/").await.expect("it leaves");
    assert_eq!(left.parameter("redirect_uri"), "https://proxy.localhost:4000/callback");
    let query = left.decide("owner").await;
    let ended = back(&login, &query, &left.cookie).await.expect("it ends");
    for cookie in ended.set_cookies {
        assert!(cookie.contains("; Domain=example.test; ") && cookie.contains("; Secure"), "{cookie}");
    }
}

#[tokio::test]
async fn only_the_browser_that_left_may_come_back_and_only_once() {
    let world = world();
    let login = shared(&world);
    let left = leave(&login, HOST, "/").await.expect("it leaves");
    let query = left.decide("owner").await;
    let (name, _) = left.cookie.split_once('=').expect("a pair");
    let another = leave(&login, HOST, "/").await.expect("it leaves").cookie;
    for cookies in ["", &another, &format!("{name}=0123456789abcdef"), &format!("{name}=")] {
        let refused = fault_of(back(&login, &query, cookies).await);
        assert_eq!(refused, LoginFault::OtherBrowser, "{cookies}");
    }
    assert!(back(&login, &query, &format!("a=b;{};{another}", left.cookie)).await.is_ok());
    assert_eq!(fault_of(back(&login, &query, &left.cookie).await), LoginFault::Replayed);
}

#[tokio::test]
async fn tabs_that_log_in_at_once_do_not_disturb_each_other() {
    let world = world();
    let login = shared(&world);
    let mut tabs = Vec::new();
    for path in ["/one", "/two", "/three"] {
        tabs.push((path, leave(&login, HOST, path).await.expect("it leaves")));
    }
    let jar = tabs.iter().map(|(_, left)| left.cookie.clone()).collect::<Vec<_>>().join("; ");
    for (path, left) in tabs.iter().rev() {
        let query = left.decide("owner").await;
        let ended = back(&login, &query, &jar).await.expect("it ends");
        assert_eq!(ended.location, format!("http://{HOST}{path}"));
    }
}

#[tokio::test]
async fn a_state_that_is_not_ours_or_of_another_domain_is_refused() {
    let world = world();
    let login = shared(&world);
    let left = leave(&login, HOST, "/").await.expect("it leaves");
    let state = left.parameter("state");
    let forged = format!("{}AAAA", &state[..state.len() - 4]);
    // Plain JSON in base64, as v0.190 took it.
    let plain =
        URL_SAFE_NO_PAD.encode(r#"{"state":"a","returnTo":"https://evil.example/","sandboxId":"priv"}"#);
    for query in [
        String::new(),
        "code=x".into(),
        format!("state={state}"),
        format!("code=x&state={forged}"),
        format!("code=x&state={plain}"),
        "code=x&state=%7Bx".into(),
        format!("code=x&state=%7Bx&state={state}"),
    ] {
        assert_eq!(fault_of(back(&login, &query, &left.cookie).await), LoginFault::StateInvalid, "{query}");
    }
    let query = left.decide("owner").await;
    for host in ["evil.test:4000", "localhost:4000", "proxy.localhost", HOST] {
        let refused = fault_of(login.callback(host, &query, &left.cookie, IP).await);
        assert_eq!(refused, LoginFault::StateInvalid, "{host}");
    }
    let other_key = LoginSettings { keys: vec![Secret::new("another")], ..silent(CookieMode::Shared) };
    let other = super::tests::login(&world, other_key);
    assert_eq!(fault_of(back(&other, &query, &left.cookie).await), LoginFault::StateInvalid);
    assert!(back(&login, &query, &left.cookie).await.is_ok(), "all that did not use it up");
}

#[tokio::test]
async fn nothing_a_stranger_says_leads_anywhere_but_to_the_sandboxs_host() {
    let world = world();
    let login = shared(&world);
    for path in [
        "//evil.example/",
        "/\\evil.example",
        "/%2f%2fevil.example",
        "/@evil.example/",
        "/.evil.example",
        "/?next=https://evil.example",
        "https://evil.example/",
        "http:evil.example",
        "javascript:alert(1)",
        "@evil.example",
        ".evil.example",
        ":80@evil.example",
        "?@evil.example",
        "#@evil.example",
        "",
    ] {
        let left = leave(&login, HOST, path).await.expect("it leaves");
        let query = left.decide("owner").await;
        let ended = back(&login, &query, &left.cookie).await.expect("it ends");
        let to = Url::parse(&ended.location).expect("a URL");
        assert_eq!(to.origin().ascii_serialization(), format!("http://{HOST}"), "{path} to {to}");
    }
}

#[tokio::test]
async fn a_no_is_told_apart_by_who_says_it() {
    let world = world();
    let login = shared(&world);
    for (query, wanted) in [
        ("error=access_denied&error_description=%3Cscript%3E", LoginFault::Denied),
        ("error=login_required", LoginFault::Denied),
        ("error=what+ever", LoginFault::Denied),
        ("error=temporarily_unavailable", LoginFault::ProviderDown),
        ("error=unauthorized_client", LoginFault::ProviderUnusable),
    ] {
        assert_eq!(fault_of(back(&login, query, "").await), wanted, "{query}");
    }
    let left = leave(&login, HOST, "/").await.expect("it leaves");
    let query = left.decide("stranger").await;
    assert_eq!(fault_of(back(&login, &query, &left.cookie).await), LoginFault::NoAccess);
    let left = leave(&login, HOST, "/").await.expect("it leaves");
    let query = format!("code=never-issued&state={}&iss={}", left.parameter("state"), issuer(&world));
    assert_eq!(fault_of(back(&login, &query, &left.cookie).await), LoginFault::CodeRefused);
}

fn issuer(world: &World) -> String {
    format!("http://{}/oidc", world.api_addr())
}

#[tokio::test]
async fn a_callback_that_names_another_issuer_or_none_is_refused() {
    let world = world();
    let login = shared(&world);
    for changed in ["http://issuer.example", ""] {
        let left = leave(&login, HOST, "/").await.expect("it leaves");
        let query = left.decide("owner").await;
        let mut pairs: Vec<(String, String)> =
            url::form_urlencoded::parse(query.as_bytes()).into_owned().filter(|(n, _)| n != "iss").collect();
        if !changed.is_empty() {
            pairs.push(("iss".into(), changed.into()));
        }
        let query = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish();
        assert_eq!(fault_of(back(&login, &query, &left.cookie).await), LoginFault::TokenInvalid, "{changed}");
    }
}

#[tokio::test]
async fn an_issuer_that_is_neither_of_the_two_names_is_refused() {
    let world = world();
    let named = |domain: &str, public: Option<&str>| {
        let mut settings = silent(CookieMode::Shared);
        (settings.oidc.domain, settings.oidc.public_domain) =
            (Some(domain.into()), public.map(str::to_owned));
        settings
    };
    // The same provider by another name of the machine.
    let internal = format!("http://localhost:{}/oidc", world.api_addr().port());
    let strange = login(&world, named(&internal, None));
    assert_eq!(leave(&strange, HOST, "/").await.err(), Some(LoginFault::ProviderUnusable));
    let wrong = login(&world, named(&internal, Some("http://issuer.example/oidc")));
    assert_eq!(leave(&wrong, HOST, "/").await.err(), Some(LoginFault::ProviderUnusable));
    let right = login(&world, named(&internal, Some(&issuer(&world))));
    let left = leave(&right, HOST, "/").await.expect("it leaves");
    assert!(left.authorize.as_str().starts_with(&issuer(&world)), "browsers get the public name");
    let query = left.decide("owner").await;
    assert!(back(&right, &query, &left.cookie).await.is_ok());
}

#[tokio::test]
async fn what_is_known_of_the_provider_outlives_it() {
    let world = world();
    let login = shared(&world);
    leave(&login, HOST, "/").await.expect("it leaves");
    world.set_api_mood(ApiMood::Closing);
    let left = leave(&login, HOST, "/").await.expect("from what is known");
    let query = format!("code=x&state={}&iss={}", left.parameter("state"), issuer(&world));
    assert_eq!(fault_of(back(&login, &query, &left.cookie).await), LoginFault::ProviderDown);
}

#[tokio::test]
async fn without_a_provider_nobody_logs_in_and_a_silent_api_is_told_apart() {
    let world = world();
    world.set_api_mood(ApiMood::Status(404));
    assert_eq!(leave(&shared(&world), HOST, "/").await.err(), Some(LoginFault::NotConfigured));
    world.set_api_mood(ApiMood::Status(500));
    let refused = leave(&shared(&world), HOST, "/").await.err();
    assert_eq!(refused, Some(LoginFault::Api(crate::mailbox::Trouble::ApiStatus(500))));
    world.set_api_mood(ApiMood::Normal);
    let refused = leave(&shared(&world), "3000-priv", "/").await.err();
    assert_eq!(refused, Some(LoginFault::NotConfigured), "there is no host for a callback");
}

#[tokio::test]
async fn a_provider_that_is_down_is_told_as_such() {
    let world = world();
    let mut settings = silent(CookieMode::Shared);
    // The discard port: nothing listens there.
    settings.oidc.domain = Some("http://127.0.0.1:9/oidc".into());
    assert_eq!(leave(&login(&world, settings), HOST, "/").await.err(), Some(LoginFault::ProviderDown));
}

mod isolated {
    use super::*;

    async fn ticket(login: &Login) -> (Left, String) {
        let left = leave(login, HOST, "/a?b=c").await.expect("it leaves");
        let query = left.decide("owner").await;
        // The callback's host has none of the browser's cookies.
        let Redirect { location, set_cookies } = back(login, &query, "").await.expect("it goes on");
        assert!(set_cookies.is_empty(), "no cookie is left where others could see it");
        let start = format!("https://{HOST}/.daytona/auth?");
        (left, location.strip_prefix(&start).unwrap_or_else(|| panic!("{location}")).to_owned())
    }

    #[tokio::test]
    async fn a_login_ends_at_the_sandboxs_own_host_with_a_cookie_of_its_own() {
        let world = world();
        let login = login(&world, silent(CookieMode::Isolated));
        let (left, ticket) = ticket(&login).await;
        assert!(left.cookie.starts_with("__Host-daytona-login-"), "{}", left.cookie);
        let ended = login.hand_off(HOST, &ticket, &left.cookie).await.expect("it ends");
        assert_eq!(ended.location, format!("https://{HOST}/a?b=c"));
        let [auth, gone] = ended.set_cookies.as_slice() else { panic!("two cookies") };
        let (pair, attributes) = auth.split_once("; ").expect("attributes");
        assert_eq!(attributes, "Path=/; Max-Age=3600; HttpOnly; Secure; SameSite=Lax");
        let value = cookie::unescape(pair.split_once('=').expect("a pair").1.as_bytes()).expect("escaped");
        let keys = CookieKeys::new(KEY, []);
        let opened = keys.open(crate::login::HOST_COOKIE, &value, now(), cookie::AUTH_MAX_AGE).expect("ours");
        assert_eq!(opened.value.as_slice(), format!("priv@{HOST}").as_bytes());
        assert!(gone.contains("=; Path=/; Max-Age=0; HttpOnly; Secure"), "{gone}");
        let again = login.hand_off(HOST, &ticket, &left.cookie).await;
        assert_eq!(fault_of(again), LoginFault::Replayed);
    }

    #[tokio::test]
    async fn a_ticket_is_worth_nothing_elsewhere_or_to_another_browser() {
        let world = world();
        let login = login(&world, silent(CookieMode::Isolated));
        let (left, ticket) = ticket(&login).await;
        let another = leave(&login, HOST, "/").await.expect("it leaves").cookie;
        for cookies in ["", &another] {
            let refused = fault_of(login.hand_off(HOST, &ticket, cookies).await);
            assert_eq!(refused, LoginFault::OtherBrowser, "{cookies}");
        }
        for host in ["3001-priv.proxy.localhost:4000", "3000-other.proxy.localhost:4000", BASE] {
            let refused = fault_of(login.hand_off(host, &ticket, &left.cookie).await);
            assert_eq!(refused, LoginFault::StateInvalid, "{host}");
        }
        let state = format!("t={}", left.parameter("state"));
        for query in ["", "t=", "t=x", &state] {
            let refused = fault_of(login.hand_off(HOST, query, &left.cookie).await);
            assert_eq!(refused, LoginFault::StateInvalid, "{query}");
        }
        assert!(login.hand_off(HOST, &ticket, &left.cookie).await.is_ok(), "all that did not use it up");
    }
}

#[tokio::test]
async fn what_is_logged_and_shown_holds_no_secret() {
    let world = world();
    let login = shared(&world);
    let left = leave(&login, HOST, "/").await.expect("it leaves");
    let mut id = [0; 36];
    RequestIds::new().next(&mut id);
    let question = LoginQuestion::Callback {
        request_id: id,
        host: BASE.into(),
        query: Token::parse(format!("code=canary&state={}", left.parameter("state")).as_bytes())
            .expect("ASCII"),
        cookies: FlowCookies::read([left.cookie.as_bytes()].into_iter(), "daytona-login-"),
        client_ip: IP,
    };
    let reply = login.answer(&question).await;
    let shown = format!("{question:?} {reply:?} {:?}", login.settings);
    let (_, cookie) = left.cookie.split_once('=').expect("a pair");
    for secret in ["canary", cookie, &left.parameter("state"), KEY] {
        assert!(!shown.contains(secret), "{shown}");
    }
}

#[tokio::test]
async fn gates_with_one_redis_count_together_and_each_alone_without_it() {
    let id = |n: u8| [n; 16];
    let server = RedisServer::start(&[]);
    let settings = crate::config::Redis {
        host: "127.0.0.1".into(),
        port: server.port,
        username: None,
        password: None,
        tls: false,
    };
    let gate = || {
        let redis =
            Redis::new(&settings, None, Arc::<crate::control::stats::Stats>::default(), Log::discard())
                .expect("good settings");
        let keeping = tokio::spawn(redis.clone().keep());
        (Used::new(Some(redis.clone())), redis, keeping)
    };
    let ((one, redis_one, keeping_one), (two, redis_two, keeping_two)) = (gate(), gate());
    for redis in [&redis_one, &redis_two] {
        within(redis.watch_up().wait_for(|up| *up)).await.expect("it connects");
    }
    assert!(one.first(id(1), 300, 0).await);
    assert!(!two.first(id(1), 300, 0).await, "it was used at the other gate");
    assert!(two.first(id(2), 300, 0).await);
    let ttl: u64 =
        redis_server::cli(server.port, &["TTL", &format!("sandgate:login-used:{}", flow::hex(&id(1)))])
            .parse()
            .expect("digits");
    assert!((1..=300).contains(&ttl), "{ttl}");
    drop(server);
    assert!(one.first(id(3), 300, 0).await, "a login does not need Redis");
    assert!(!one.first(id(3), 300, 0).await);
    keeping_one.abort();
    keeping_two.abort();
}

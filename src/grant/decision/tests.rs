//! The decision against a model that is written the other way round: not step by step, but as what must hold of a
//! request and a world in which everything is known.

use super::*;
use crate::ids::Port;
use crate::route::BuildLogsOf;

fn id(text: &str) -> SandboxId {
    SandboxId::parse(text.as_bytes()).expect("an id")
}

fn preview(port: u16, label: &str) -> Route {
    Route::Preview { port: Port::parse(port.to_string().as_bytes()).expect("a port"), label: id(label) }
}

fn toolbox(label: &str) -> Route {
    Route::Toolbox { sandbox: id(label), rest_at: 10 }
}

const LINK: &str = "abcdefgh01234567";
const SANDBOX: &str = "0b2f4d6e-0000-4000-8000-00000000000a";

fn routes() -> Vec<Route> {
    let mut routes = vec![toolbox(SANDBOX), toolbox(LINK), Route::Health];
    routes.push(Route::BuildLogs { of: BuildLogsOf::Sandbox(id(SANDBOX)), follow: false });
    for port in [80, 3000, 6080, 2280, 22222, 33333] {
        routes.extend([preview(port, SANDBOX), preview(port, LINK)]);
    }
    routes
}

/// What can be wrong with asking, by what the API does: 5xx, 429, nothing in time, nonsense, nobody there, too much.
const TROUBLES: [Trouble; 6] = [
    Trouble::ApiStatus(500),
    Trouble::ApiRateLimited(Some(7)),
    Trouble::ApiTimeout,
    Trouble::ApiGarbage,
    Trouble::ApiUnreachable,
    Trouble::Overloaded,
];

/// Whatever became of an expired, revoked, wrong-kind or other sandbox's proof, its finding is `Bad`.
fn outcomes(proof: Proof) -> Vec<Finding> {
    let mut outcomes = vec![Finding::Bad];
    match proof {
        Proof::Public => outcomes.push(Finding::Good),
        Proof::SignedLink => outcomes.push(Finding::LinkTo(id("target"))),
        _ => outcomes.extend([Finding::Good, Finding::NotShown]),
    }
    if proof != Proof::Cookie {
        outcomes.extend(TROUBLES.map(Finding::Trouble));
    }
    outcomes
}

/// What matters about a route, read off its kind.
struct Nature {
    /// May be open to all.
    can_be_public: bool,
    /// Takes bearer, preview tokens and cookie.
    takes_all: bool,
    takes_bearer: bool,
    takes_link: bool,
}

fn nature(route: &Route) -> Nature {
    let none = Nature { can_be_public: false, takes_all: false, takes_bearer: false, takes_link: false };
    match route {
        Route::Preview { port, label } => Nature {
            can_be_public: ![2280, 22222, 33333].contains(&port.number()),
            takes_all: true,
            takes_bearer: true,
            takes_link: label.as_str() == LINK,
        },
        Route::Toolbox { .. } => Nature { takes_all: true, takes_bearer: true, ..none },
        Route::BuildLogs { .. } => Nature { takes_bearer: true, ..none },
        Route::Health | Route::Callback | Route::Handoff => none,
    }
}

/// The world as it is: one outcome per proof, in [`Proof::ORDER`].
type World = [Finding; 6];

fn model(route: &Route, world: &World) -> Step {
    let Nature { can_be_public, takes_all, takes_bearer, takes_link } = nature(route);
    let [public, bearer, header, query, cookie, link] = *world;
    let taken = [
        (can_be_public, public),
        (takes_bearer, bearer),
        (takes_all, header),
        (takes_all, query),
        (takes_all, cookie),
        (takes_link, link),
    ];
    let opens = |finding| matches!(finding, Finding::Good | Finding::LinkTo(_));
    if let Some(first) = taken.iter().position(|(takes, finding)| *takes && opens(*finding)) {
        let link_to = (first == 5).then(|| id("target"));
        return Step::Grant { proof: Proof::ORDER[first], link_to };
    }
    let shown: Vec<Finding> = taken.iter().filter(|(takes, _)| *takes).map(|(_, finding)| *finding).collect();
    let trouble = shown.iter().find_map(|f| if let Finding::Trouble(t) = f { Some(*t) } else { None });
    Step::Refuse(match trouble {
        _ if *route == Route::Health => Cause::Internal,
        Some(trouble) => Cause::Api(trouble),
        None if takes_link => Cause::SignedUrlExpired,
        None if takes_bearer && bearer == Finding::Bad => Cause::AuthInvalid,
        None if takes_all && [header, query].contains(&Finding::Bad) => Cause::AuthInvalid,
        None => Cause::AuthRequired,
    })
}

/// Asks as the authorizer does; gives the end of it and what was asked for.
fn run(route: &Route, world: &World) -> (Step, Vec<Proof>) {
    let (mut findings, mut found) = (Findings::default(), Vec::new());
    loop {
        match decide(route, &findings) {
            Step::Find(proof) => {
                assert!(!found.contains(&proof), "{proof:?} is asked for twice");
                found.push(proof);
                findings.set(proof, world[proof as usize]);
            }
            end => return (end, found),
        }
    }
}

#[test]
fn every_route_proof_and_outcome_is_decided_as_the_model_says() {
    let [publics, bearers, headers, queries, cookies, links] = Proof::ORDER.map(outcomes);
    let mut cases = 0u64;
    for route in routes() {
        for &public in &publics {
            for &bearer in &bearers {
                for &header in &headers {
                    for &query in &queries {
                        for &cookie in &cookies {
                            for &link in &links {
                                let world = [public, bearer, header, query, cookie, link];
                                let (end, found) = run(&route, &world);
                                assert_eq!(end, model(&route, &world), "{route:?} {world:?}");
                                check_search(&route, &world, &end, &found);
                                cases += 1;
                            }
                        }
                    }
                }
            }
        }
    }
    assert!(cases > 1_000_000, "{cases}");
}

/// In order, and nothing behind what let the request in.
fn check_search(route: &Route, world: &World, end: &Step, found: &[Proof]) {
    assert!(found.is_sorted_by_key(|proof| *proof as usize), "{found:?}");
    if let Step::Grant { proof, .. } = end {
        assert_eq!(found.last(), Some(proof), "{route:?} {world:?}");
        assert!(matches!(world[*proof as usize], Finding::Good | Finding::LinkTo(_)));
    }
}

#[test]
fn trouble_everywhere_opens_nothing() {
    for route in routes() {
        for trouble in TROUBLES {
            let mut world = [Finding::Trouble(trouble); 6];
            world[Proof::Cookie as usize] = Finding::NotShown;
            let (end, _) = run(&route, &world);
            assert!(matches!(end, Step::Refuse(_)), "{route:?} {trouble:?}");
        }
    }
}

#[test]
fn a_finding_that_cannot_be_opens_nothing() {
    for (proof, finding) in [
        (Proof::Public, Finding::LinkTo(id("other"))),
        (Proof::Bearer, Finding::LinkTo(id("other"))),
        (Proof::Cookie, Finding::LinkTo(id("other"))),
        (Proof::SignedLink, Finding::Good),
    ] {
        let mut world = [Finding::Bad; 6];
        world[proof as usize] = finding;
        let (end, _) = run(&preview(3000, LINK), &world);
        assert_eq!(end, Step::Refuse(Cause::Internal), "{proof:?}");
    }
}

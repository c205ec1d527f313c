// A real OpenID provider (npm oidc-provider) for the tests of login, with its own login and consent pages.
//
//   node provider.mjs '{"issuer": "http://localhost:{port}", "redirectUris": [...], "clientId": "...", "clientSecret": null}'
//
// Listens on a loopback port of the kernel's choice, puts it where the settings say {port}, and prints
// "listening on <port>". What is under /__test/ is for the tests: it is not part of the provider.
//   POST /__test/rotate        from now on other keys sign
//   POST /__test/tamper/<how>  from now on ID tokens are wrong: nonce, issuer, audience, expired, none (honest again)
//   GET  /__test/requests      what was asked so far: [{method, path}]
import { createServer } from 'node:http';
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';

// The packages are installed outside the repository.
const load = async (name) => {
  const from = createRequire(`${process.env.SANDGATE_TEST_OIDC_DIR}/`);
  return import(pathToFileURL(from.resolve(name)));
};
const { default: Provider } = await load('oidc-provider');
const jose = await load('jose');

let settings;
let provider;
let handler;
let signing;
let tampering = 'none';
const requests = [];

async function build() {
  const { privateKey } = await jose.generateKeyPair('RS256', { extractable: true });
  const jwk = { ...(await jose.exportJWK(privateKey)), kid: crypto.randomUUID(), use: 'sig', alg: 'RS256' };
  signing = { privateKey, kid: jwk.kid };
  provider = new Provider(settings.issuer, {
    jwks: { keys: [jwk] },
    cookies: { keys: ['only for tests'] },
    claims: { openid: ['sub'], profile: ['name'] },
    clients: [{
      client_id: settings.clientId,
      ...(settings.clientSecret
        ? { client_secret: settings.clientSecret, token_endpoint_auth_method: 'client_secret_basic' }
        : { token_endpoint_auth_method: 'none' }),
      redirect_uris: settings.redirectUris,
      grant_types: ['authorization_code'],
      response_types: ['code'],
    }],
  });
  provider.use(async (ctx, next) => {
    await next();
    if (ctx.path === '/token' && ctx.body?.id_token && tampering !== 'none') {
      ctx.body = { ...ctx.body, id_token: await tampered(ctx.body.id_token) };
    }
  });
  handler = provider.callback();
}

async function tampered(token) {
  const claims = jose.decodeJwt(token);
  const now = Math.floor(Date.now() / 1000);
  const changes = {
    nonce: { nonce: 'canary-nonce' },
    issuer: { iss: 'http://canary-issuer.example' },
    audience: { aud: 'another-client' },
    expired: { iat: now - 7200, exp: now - 3600 },
  }[tampering];
  return new jose.SignJWT({ ...claims, ...changes })
    .setProtectedHeader({ alg: 'RS256', kid: signing.kid })
    .sign(signing.privateKey);
}

const server = createServer(async (request, response) => {
  const [, name, how] = request.url.match(/^\/__test\/(\w+)(?:\/(\w+))?$/) ?? [];
  if (!name) {
    requests.push({ method: request.method, path: request.url.split('?')[0] });
    return handler(request, response);
  }
  if (name === 'rotate') await build();
  if (name === 'tamper') tampering = how;
  const body = JSON.stringify(name === 'requests' ? requests : {});
  return response.writeHead(200, { 'content-length': Buffer.byteLength(body) }).end(body);
});

server.listen(0, '127.0.0.1', async () => {
  const { port } = server.address();
  settings = JSON.parse(process.argv[2].replaceAll('{port}', String(port)));
  await build();
  console.log(`listening on ${port}`);
});

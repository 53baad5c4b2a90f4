// A customer's app that knows nothing of Strongroom's SDK: oauth4webapi, an independent and certified OAuth client,
// finds the endpoints, exchanges an authorization code, uses DPoP-bound tokens, refreshes and revokes them.
// Arguments: the address of the app listener, a telephone number. It prints what it got as JSON.
import assert from 'node:assert/strict'
import * as oauth from 'oauth4webapi'

const [base, phone] = process.argv.slice(2)
const issuer = new URL(base)
const client = { client_id: 'app' }
const keys = await oauth.generateKeyPair('ES256')
const DPoP = oauth.DPoP(client, keys)

// The metadata, RFC 8414.
const as = await oauth.processDiscoveryResponse(issuer, await oauth.discoveryRequest(issuer, { algorithm: 'oauth2' }))
assert.equal(as.issuer, base)
assert.deepEqual(as.dpop_signing_alg_values_supported, ['ES256'])

// The login operations, with proofs by the same key.
async function call(path, body) {
  const url = new URL(path, base)
  for (let tries = 0; ; tries++) {
    const headers = new Headers({ 'content-type': 'application/json' })
    await DPoP.addProof(url, headers, 'POST')
    const response = await fetch(url, { method: 'POST', headers, body: JSON.stringify(body) })
    DPoP.cacheNonce(response, url)
    const answer = await response.json()
    if (answer.type === 'urn:strongroom:problem:use-dpop-nonce' && tries === 0) continue
    assert.ok(response.ok, `${path}: ${JSON.stringify(answer)}`)
    return answer
  }
}
async function code(last) {
  for (let tries = 0; tries < 600; tries++) {
    const response = await fetch(new URL('/dev/inbox/search', base), {
      method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify({ to: phone }),
    })
    const newest = (await response.json()).messages?.[0]?.text.match(/\b[0-9]{6}\b/)?.[0]
    if (newest && newest !== last) return newest
    await new Promise((done) => setTimeout(done, 50))
  }
  throw new Error('no code came')
}
const privateCode = '83510274'
const { registration } = await call('/v1/registrations', { phone })
const first = await code()
await call(`/v1/registrations/${registration}/complete`, { code: first, private_code: privateCode, device_name: 'node' })
const { login } = await call('/v1/logins', { phone, private_code: privateCode })

// The authorization code, RFC 6749 section 4.1 with RFC 7636 and RFC 9207.
const redirect = 'com.example.app:/done'
const verifier = oauth.generateRandomCodeVerifier()
const state = oauth.generateRandomState()
const authorized = await call(`/v1/logins/${login}/authorize`, {
  code: await code(first), response_type: 'code', client_id: client.client_id, redirect_uri: redirect, scope: 'read payment', state,
  code_challenge: await oauth.calculatePKCECodeChallenge(verifier), code_challenge_method: 'S256',
})
const callback = new URLSearchParams({ code: authorized.code, iss: authorized.iss, state: authorized.state })
const parameters = oauth.validateAuthResponse(as, client, callback, state)

// A client that has no nonce yet is told to fetch one, and is served then, RFC 9449 section 8.
const fresh = oauth.DPoP(client, keys)
let nonces = 0
async function withNonce(request, process) {
  try {
    return await process(await request())
  } catch (error) {
    if (!oauth.isDPoPNonceError(error)) throw error
    nonces++
    return await process(await request())
  }
}
const tokens = await withNonce(
  () => oauth.authorizationCodeGrantRequest(as, client, oauth.None(), parameters, redirect, verifier, { DPoP: fresh }),
  (response) => oauth.processAuthorizationCodeResponse(as, client, response),
)
assert.equal(nonces, 1)
assert.equal(tokens.token_type, 'dpop')
assert.equal(tokens.scope, 'read payment')

// The token in use, RFC 9449 section 7.
const resource = new URL('/v1/session', base)
const using = (access) => oauth.protectedResourceRequest(access, 'GET', resource, undefined, undefined, { DPoP: fresh })
const session = await (await using(tokens.access_token)).json()
assert.equal(session.scope, 'read payment')

// Refreshing, RFC 6749 section 6.
const refresh = (token, handle = fresh) => withNonce(
  () => oauth.refreshTokenGrantRequest(as, client, oauth.None(), token, { DPoP: handle }),
  (response) => oauth.processRefreshTokenResponse(as, client, response),
)
const next = await refresh(tokens.refresh_token)
assert.notEqual(next.refresh_token, tokens.refresh_token)
assert.equal((await using(next.access_token)).status, 200)

// Another key gets nothing for a stolen token.
const thief = oauth.DPoP(client, await oauth.generateKeyPair('ES256'))
await assert.rejects(refresh(next.refresh_token, thief), (error) => error instanceof oauth.ResponseBodyError && error.error === 'invalid_grant')
console.log(JSON.stringify({ access: next.access_token, refresh: next.refresh_token, customer: session.customer, jkt: await DPoP.calculateThumbprint() }))

// Go on when the other side has looked at the token.
await new Promise((done) => process.stdin.once('data', done))
process.stdin.destroy()

// Revocation, RFC 7009.
await oauth.processRevocationResponse(await oauth.revocationRequest(as, client, oauth.None(), next.refresh_token))
await assert.rejects(refresh(next.refresh_token), (error) => error.error === 'invalid_grant')
await assert.rejects(using(next.access_token), (error) => error instanceof oauth.WWWAuthenticateChallengeError && error.cause[0].parameters.error === 'invalid_token')
console.log('done')

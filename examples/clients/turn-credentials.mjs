import { createHmac } from 'node:crypto';

/** Username and password that the relay accepts for ttl seconds. */
function mint(secret, user, ttl = 3600) {
  const username = `${Math.floor(Date.now() / 1000) + ttl}:${user}`;
  const password = createHmac('sha1', secret).update(username).digest('base64');
  return { username, password };
}

/** The iceServers that the relay's endpoint gives for this user. */
async function ask(relay, key, user) {
  const query = new URLSearchParams({ username: user });
  const answer = await fetch(`${relay}/v1/credentials?${query}`, {
    headers: { Authorization: `Bearer ${key}` },
    signal: AbortSignal.timeout(5000),
  });
  if (!answer.ok) throw new Error(`the relay answers ${answer.status}: ${await answer.text()}`);
  return (await answer.json()).iceServers;
}

const [command, user] = process.argv.slice(2);
const { TURN_SECRET, RELAY, RELAY_KEY } = process.env;
if (command === 'mint') {
  const { username, password } = mint(TURN_SECRET, user);
  console.log(`${username}\n${password}`);
} else {
  console.log(JSON.stringify(await ask(RELAY, RELAY_KEY, user)));
}

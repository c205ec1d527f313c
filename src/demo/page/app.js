'use strict';
const at = id => document.getElementById(id);

// Hosts are {port}-{sandbox}.{domain}: the neighbours differ in the sandbox's name alone.
const others = {
  echo: ['/hello?who=you', 'shows the request as the app got it'],
  sse: ['/', 'server-sent events, one a second'],
  files: ['/', 'downloads with ranges, an upload that is hashed'],
  slow: ['/', 'takes three seconds to answer'],
  crash: ['/', 'closes without an answer'],
  stopped: ['/', 'a sandbox that is not running'],
  private: ['/', 'asks who you are'],
};
const domain = location.host.slice(location.host.indexOf('.'));
for (const [name, [path, what]] of Object.entries(others)) {
  const item = document.createElement('li'), link = document.createElement('a');
  link.href = `${location.protocol}//3000-${name}${domain}${path}`;
  link.textContent = name;
  item.append(link, ` ${what}`);
  at('others').append(item);
}

fetch('/echo').then(r => r.json()).then(seen => {
  at('request').textContent = [seen.line, ...seen.headers.map(([n, v]) => `${n}: ${v}`)].join('\n');
}).catch(error => { at('request').textContent = String(error); });

let socket, wait = 500;
function connect() {
  socket = new WebSocket(`${location.protocol === 'https:' ? 'wss' : 'ws'}://${location.host}/live`);
  socket.onopen = () => { wait = 500; at('state').textContent = 'WebSocket to /live is open'; };
  socket.onmessage = ({ data }) => {
    const message = JSON.parse(data);
    if (message.kind === 'time') { at('clock').textContent = new Date(message.unix_ms).toLocaleTimeString(); return; }
    const item = document.createElement('li');
    item.textContent = message.text;
    at('echoes').prepend(item);
    while (at('echoes').children.length > 5) at('echoes').lastChild.remove();
  };
  socket.onclose = () => {
    at('state').textContent = 'WebSocket closed, trying again…';
    setTimeout(connect, wait);
    wait = Math.min(wait * 2, 10000);
  };
}
connect();
at('say').onsubmit = event => {
  event.preventDefault();
  if (socket.readyState === WebSocket.OPEN) socket.send(at('text').value);
};

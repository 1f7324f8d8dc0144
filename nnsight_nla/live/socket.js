// The transport of a served page: a WebSocket to its own server, which connects again when it is lost.
(() => {
  "use strict";
  const url = new URL("socket", location.href);
  url.protocol = url.protocol.replace("http", "ws");
  const LEAST = 250, MOST = 5000, TOO_LONG = 1009;
  const early = [];
  let socket = null, state = "", wait = LEAST, hear = () => {}, watch = () => {};

  function become(now) {
    if (now !== state) watch((state = now));
  }

  function connect() {
    socket = new WebSocket(url);
    socket.addEventListener("open", () => {
      wait = LEAST;
      for (const text of early.splice(0)) socket.send(text);
      become("open");
    });
    socket.addEventListener("message", (event) => hear(JSON.parse(event.data)));
    socket.addEventListener("close", (event) => {
      if (event.code === TOO_LONG) hear({ type: "error", message: "The message was too long for the server. Shorten the text." });
      become("lost");
      setTimeout(connect, wait);
      wait = Math.min(MOST, 2 * wait);
    });
  }

  globalThis.nnsightNla = { transport: {
    send(message) {
      const text = JSON.stringify(message);
      if (socket.readyState === WebSocket.OPEN) socket.send(text);
      else if (!state) early.push(text);  // What waits when the connection is lost, the page sends again.
    },
    receive(callback) { hear = callback; },
    state(callback) { watch = callback; if (state) callback(state); },
  } };
  connect();
})();

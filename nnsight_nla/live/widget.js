// The transport of a widget's page: the messages of its kernel. Each view of a cell's output is a client of its own.
function render({ model, el }) {
  const view = `${Date.now()}-${Math.random()}`;
  let hear = () => {}, watch = () => {}, gone = false;
  const receive = (content) => {
    if (content.view === view && !gone) hear(content.message);
  };
  const end = () => { if (!gone) watch("closed"); };
  model.on("msg:custom", receive);
  model.on("comm:close", end);
  model.on("destroy", end);
  const transport = {
    send(message) { model.send({ view, message }); },
    receive(callback) { hear = callback; },
    state(callback) { watch = callback; callback("open"); },
  };
  const shadow = el.attachShadow({ mode: "open" });
  const sheet = document.createElement("style"), box = document.createElement("div");
  sheet.textContent = model.get("style");
  shadow.append(sheet, box);
  const page = globalThis.nnsightNla.mount(box, { title: model.get("title"), readings: [], pairs: null }, transport);
  model.send({ view, message: null });
  return () => {
    gone = true;
    model.off("msg:custom", receive);
    model.off("comm:close", end);
    model.off("destroy", end);
    model.send({ view, message: "bye" });
    page.destroy();
  };
}

export default { render };

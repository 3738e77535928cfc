// Pictures from files, the clipboard and the camera; their answers, additions and undo.
const MOST_CARDS = 20;
const byId = (id) => document.getElementById(id);
const [answers, status, undo, choices] = ["answers", "status", "undo", "choices"].map(byId);
const cards = new Map(); // article -> picture and its name
let busy = 0;

function say(text, bad = false) {
  status.textContent = text;
  status.classList.toggle("bad", bad);
}

async function ask(path, query, body) {
  const address = `${path}?${new URLSearchParams(query)}`;
  let response;
  try {
    response = await fetch(address, { method: "POST", body, headers: { "X-Fewtune-Page": "1" } });
  } catch {
    throw new Error("the program behind this page does not answer; was it ended?");
  }
  const found = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(found.detail || `${response.status} ${response.statusText}`);
  return found;
}

async function during(job, text, about = "") {
  busy += 1;
  for (const button of document.querySelectorAll("button")) button.disabled = true;
  if (text) say(text);
  try {
    return await job();
  } catch (error) {
    say(about + error.message, true);
  } finally {
    busy -= 1;
    if (!busy) for (const button of document.querySelectorAll("button")) button.disabled = false;
  }
}

const chosen = () => (choices ? Object.fromEntries(new FormData(choices)) : {});

function fill(article, name, found) {
  const part = (selector) => article.querySelector(selector);
  article.classList.remove("label", "unsure", "unknown");
  article.classList.add(found.kind);
  part(".picture").src = found.picture;
  part(".picture").alt = `the picture ${name}`;
  part("figcaption").textContent = name;
  part(".heat").hidden = !found.heat_map;
  if (found.heat_map) {
    part(".heat img").src = found.heat_map;
    part(".heat img").alt = `heat map of ${name}`;
  }
  part(".verdict").textContent = found.verdict;
  part(".sentence").textContent = found.sentence;
  part(".bars-title").hidden = !found.bars.length;
  part(".bars").classList.toggle("marked", found.mark !== null);
  part(".bars").style.setProperty("--mark", found.mark ?? 0);
  part(".bars").replaceChildren(...found.bars.map((bar) => {
    const [row, label, value, line] = ["li", "span", "span", "i"].map((tag) => document.createElement(tag));
    label.textContent = bar.label;
    value.textContent = bar.text;
    line.style.setProperty("--s", Math.max(0, Math.min(1, bar.share)));
    row.append(label, value, line);
    return row;
  }));
  part(".near").hidden = !found.nearest.length;
  part(".near ul").replaceChildren(...found.nearest.map((near) => {
    const [row, frame, label, value] = ["li", "div", "strong", "small"].map((tag) => document.createElement(tag));
    const shown = document.createElement(near.picture ? "img" : "span");
    frame.className = "frame";
    if (near.picture) Object.assign(shown, { src: near.picture, alt: `training picture of ${near.label}` });
    else shown.textContent = "file is gone";
    label.textContent = near.label;
    value.textContent = near.text;
    frame.append(shown);
    row.append(frame, label, value);
    return row;
  }));
}

// True where there is an answer; else the status says why not.
async function show(picture, name) {
  return during(async () => {
    const found = await ask("answer", chosen(), picture);
    const article = byId("card").content.cloneNode(true).querySelector("article");
    fill(article, name, found);
    cards.set(article, { picture, name });
    answers.prepend(article);
    article.querySelector("form").addEventListener("submit", (event) => {
      event.preventDefault();
      add(article, event.target.querySelector("input"));
    });
    for (const old of [...cards.keys()].slice(0, -MOST_CARDS)) {
      cards.delete(old);
      old.remove();
    }
    say(`${name}: ${found.verdict}`);
    return true;
  }, `${name} …`, `${name}: `);
}

async function showAll(files) {
  const failed = [];
  for (const file of files) if (!(await show(file, file.name || "picture"))) failed.push(status.textContent);
  if (failed.length) say(failed.join("; "), true);
}

async function again() {
  await during(async () => {
    for (const [article, { picture, name }] of cards) fill(article, name, await ask("answer", chosen(), picture));
    say("");
  });
}

function changed(found) {
  byId("classes").replaceChildren(...found.classes.map((name) => Object.assign(document.createElement("option"), { value: name })));
  undo.hidden = !found.past.some((each) => each.undoable);
  byId("past").hidden = !found.past.length;
  byId("changes").replaceChildren(...found.past.map((each) => Object.assign(document.createElement("li"), {
    value: each.number,
    textContent: each.text + (each.undoable ? "" : " (cannot be undone)"),
  })));
  byId("about").textContent = found.about;
}

// What another page or program has changed.
async function refresh() {
  const found = await fetch("state").catch(() => null);
  if (found?.ok) changed(await found.json());
}

async function add(article, input) {
  const found = await during(() => ask("add", { label: input.value }, cards.get(article).picture), "adding …");
  if (!found) return;
  input.value = "";
  changed(found);
  await again();
  say(found.said);
}

undo.addEventListener("click", async () => {
  const found = await during(() => ask("undo", { number: byId("changes").firstElementChild.value }), "undoing …");
  if (!found) {
    await refresh();
    return;
  }
  changed(found);
  await again();
  say(found.said);
  byId("files").focus();
});
byId("files").addEventListener("change", async (event) => {
  const files = [...event.target.files];
  event.target.value = "";
  await showAll(files);
});
choices?.addEventListener("change", again);

const pictures = (list) => [...list].filter((file) => file instanceof File);
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    byId("give").classList.toggle("over", kind === "dragover");
    if (kind === "drop") showAll(pictures(event.dataTransfer.files));
  });
}
document.addEventListener("paste", (event) => {
  const files = pictures(event.clipboardData.files);
  if (files.length) event.preventDefault();
  showAll(files);
});

const [camera, viewfinder, shot] = ["camera", "viewfinder", "shot"].map(byId);
const video = viewfinder.querySelector("video");
let stream = null;

function closeCamera() {
  for (const track of stream?.getTracks() ?? []) track.stop();
  stream = video.srcObject = null;
  viewfinder.hidden = true;
  camera.textContent = "Use the camera";
  camera.setAttribute("aria-expanded", "false");
}

camera.addEventListener("click", async () => {
  if (stream) {
    closeCamera();
    return;
  }
  if (!navigator.mediaDevices) {
    say("browsers open the camera for pages of this machine or with HTTPS alone", true);
    return;
  }
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch (error) {
    say(`the camera cannot be used: ${error.message}`, true);
    return;
  }
  video.srcObject = stream;
  viewfinder.hidden = false;
  camera.textContent = "Close the camera";
  camera.setAttribute("aria-expanded", "true");
  await video.play();
  shot.focus();
});
let shots = 0;
const FIRST_FRAME_WITHIN = 10000; // milliseconds

// The button can be reached before the camera has sent a picture.
async function firstFrame() {
  if (video.readyState >= HTMLMediaElement.HAVE_CURRENT_DATA) return;
  await new Promise((done) => {
    video.addEventListener("loadeddata", done, { once: true });
    setTimeout(done, FIRST_FRAME_WITHIN);
  });
}

shot.addEventListener("click", async () => {
  await firstFrame();
  const canvas = Object.assign(document.createElement("canvas"), { width: video.videoWidth, height: video.videoHeight });
  if (!canvas.width) {
    say("the camera shows nothing yet", true);
    return;
  }
  canvas.getContext("2d").drawImage(video, 0, 0);
  const picture = await new Promise((done) => canvas.toBlob(done, "image/png"));
  shots += 1;
  await show(picture, `camera ${shots}`);
  shot.focus();
});

// The rows of the list of runs. `value` holds them, `live` what changes all the time of some, and `shown` the id of
// the one that the page shows. Each row stays one element whatever comes before it: a tick stays on its run.
const [search, none, list] = element.children;
const known = new Map(); // id: its element, and what it was made of
let ticked = new Set();
const MANY = 10; // rows, from which on they can be searched

const part = (kind, text) => {
    const made = document.createElement("span");
    made.className = kind;
    made.textContent = text;
    return made;
};

const fill = (item, row) => {
    const [tick, choose] = item.children;
    tick.firstChild.setAttribute("aria-label", `Select ${row.name}`);
    const picture = part("thumb", "");
    picture.innerHTML = row.picture; // an <img> of the server's own
    const told = part("told", "");
    const line = part("line", "");
    line.append(part(`state ${row.kind}`, row.state), " ", part("made", row.made));
    told.append(part("name", row.name), line, part("live", ""), part("done", row.facts));
    told.append(part("about", row.about), part("remark", row.note));
    choose.replaceChildren(picture, told);
};

const make = (row) => {
    const item = document.createElement("li");
    item.innerHTML = '<label class="tick"><input type="checkbox"></label><button type="button"></button>';
    item.dataset.run = row.id;
    item.querySelector("input").addEventListener("change", (event) => {
        ticked[event.target.checked ? "add" : "delete"](row.id);
        tell();
    });
    item.querySelector("button").addEventListener("click", () => trigger("select", { run: row.id }));
    return item;
};

const tell = () => trigger("input", { ticked: props.value.map((row) => row.id).filter((id) => ticked.has(id)) });

const find = () => {
    const words = search.value.trim().toLowerCase().split(/\s+/);
    let found = 0;
    for (const row of props.value) {
        const fits = search.hidden || words.every((word) => row.found_by.includes(word));
        known.get(row.id).item.hidden = !fits;
        found += fits;
    }
    none.hidden = found > 0 || props.value.length === 0;
};

const show = () => {
    const rows = props.value || [];
    const ids = new Set(rows.map((row) => row.id));
    for (const [id, { item }] of known) if (!ids.has(id)) { item.remove(); known.delete(id); }
    rows.forEach((row, place) => {
        const made = known.get(row.id) || { item: make(row), of: "" };
        known.set(row.id, made);
        const now = JSON.stringify(row);
        if (made.of !== now) fill(made.item, row);
        made.of = now;
        if (list.children[place] !== made.item) list.insertBefore(made.item, list.children[place] || null);
        const button = made.item.querySelector("button");
        button.setAttribute("aria-current", String(row.id === props.shown));
        const [text, share] = props.live[row.id] || ["", 0];
        const live = button.querySelector(".live");
        if (live.textContent !== text) live.textContent = text;
        live.style.setProperty("--done", share);
    });
    search.hidden = rows.length <= MANY;
    find();
    const left = new Set([...ticked].filter((id) => ids.has(id)));
    if (left.size !== ticked.size) { ticked = left; tell(); } // deleted, here or by another tab
};

search.addEventListener("input", find);
watch(["value", "live", "shown"], show);
show();

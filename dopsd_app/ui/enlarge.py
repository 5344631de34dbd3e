"""Enlarging a picture on a click: one dialog of the browser's own for the whole page."""

# Links of the class `enlarge` (`words.picture`) open in it. The arrows walk through those of the same group,
# in the order of the page; what many have in common, an element around them may say once (`data-group`,
# `data-about`). The dialog keeps the focus and closes by Escape. For a middle click, links stay
# links.
ENLARGE = """() => {
    if (document.getElementById("enlarged")) return;
    const box = document.createElement("dialog");
    box.id = "enlarged";
    box.setAttribute("aria-label", "Enlarged picture");
    box.innerHTML = `<figure><img alt=""><figcaption></figcaption></figure>
        <button class="before" aria-label="The picture before">&lsaquo;</button>
        <button class="after" aria-label="The next picture">&rsaquo;</button>
        <button class="close" aria-label="Close">&times;</button>`;
    document.querySelector(".gradio-container").append(box);
    const [before, after, close] = box.querySelectorAll("button");
    let links = [], at = 0;
    const show = (to) => {
        at = Math.max(0, Math.min(links.length - 1, to));
        const link = links[at], small = link.querySelector("img"), large = box.querySelector("img");
        if (large.src !== link.href) large.src = link.href;
        large.alt = small.alt;
        large.classList.toggle("pixels", Math.max(small.naturalWidth, small.naturalHeight) < 256);
        const about = [link.dataset.caption || small.alt, link.closest("[data-about]")?.dataset.about];
        box.querySelector("figcaption").textContent = about.filter(Boolean).join(" \u00b7 ");
        before.disabled = at === 0;
        after.disabled = at === links.length - 1;
        before.hidden = after.hidden = links.length < 2;
    };
    document.addEventListener("click", (event) => {
        const link = event.target.closest?.("a.enlarge");
        if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
        event.preventDefault();
        const of = (a) => a.closest("[data-group]")?.dataset.group;
        const group = of(link), all = [...document.querySelectorAll("a.enlarge")];
        links = all.filter((a) => a === link || (group && of(a) === group && a.offsetParent));
        show(links.indexOf(link));
        box.showModal();
    });
    before.addEventListener("click", () => show(at - 1));
    after.addEventListener("click", () => show(at + 1));
    close.addEventListener("click", () => box.close());
    box.addEventListener("click", (event) => { if (event.target === box) box.close(); });
    box.addEventListener("keydown", (event) => {
        if (event.key === "ArrowLeft") show(at - 1);
        if (event.key === "ArrowRight") show(at + 1);
    });
}"""

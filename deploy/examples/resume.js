// An EventSource that comes back, for clients that do not. The published `uhst` client (3.3.0) closes for good at the first error of its
// stream; behind this it does not hear of an interruption that is shorter than the relay's grace.
//
// In a page, before the client is used:    <script src="resume.js"></script>
//                                          <script>EventSource = resumable(EventSource, 30);</script>
// On Node:    const { resumable } = require("./resume.js");
//             globalThis.EventSource = resumable(require("eventsource").EventSource, 30);
//
// The number is the relay's RELAY_GRACE, in seconds. For as long as that the relay keeps the place of a stream that has ended: messages to it
// wait, and its peers are not told that it has left.
"use strict";

(() => {
    const FIRST_PAUSE = 300; // ms before the first try, then twice as long each time: a restarted relay is found soon
    const LONGEST_PAUSE = 5000; // and one that stays away is not asked all the time
    const SPREAD = 0.5; // each is as much longer or shorter, at random, so that not all come at the same moment

    /**
     * A class like `Source`, which is an `EventSource`, whose objects hide interruptions of up to `seconds`: they connect again after
     * whatever went wrong (the network, the relay, an answer other than 200), behind the last event they have had. When that
     * has not helped in this time, the error comes through, and they are closed.
     *
     * Beyond an `EventSource`'s own events there are `interrupted` and `resumed`, for pages that want to show it.
     */
    function resumable(Source, seconds = 30) {
        return class Resumable extends EventTarget {
            static CONNECTING = 0;
            static OPEN = 1;
            static CLOSED = 2;

            CONNECTING = 0;
            OPEN = 1;
            CLOSED = 2;
            readyState = 0;
            onopen = null;
            onmessage = null;
            onerror = null;

            #url;
            #options;
            #source;
            #types = new Set(["message"]);
            #lastEventId = "";
            #isAgain = false; // whether there was a connection before
            #hasOpened = false;
            #openedAt = 0;
            #tries = 0;
            #retry; // the timer of the next try
            #end; // the timer after which an interruption is told

            constructor(url, options) {
                super();
                this.#url = new URL(url, globalThis.document?.baseURI);
                this.#options = options;
                // Also the first connection may meet a relay that is just being restarted.
                this.#end = setTimeout(() => this.#fail(), seconds * 1000);
                this.#connect();
            }

            get url() {
                return this.#url.href;
            }

            get withCredentials() {
                return this.#options?.withCredentials ?? false;
            }

            addEventListener(type, listener, options) {
                super.addEventListener(type, listener, options);
                if (["open", "error", "interrupted", "resumed"].includes(type) || this.#types.has(type)) return;
                this.#types.add(type);
                if (this.#source) this.#hear(this.#source, type);
            }

            close() {
                this.readyState = 2;
                clearTimeout(this.#retry);
                clearTimeout(this.#end);
                this.#source?.close();
                this.#source = undefined;
            }

            #connect() {
                const source = new Source(this.#address(), this.#options);
                this.#source = source;
                for (const type of this.#types) this.#hear(source, type);
                source.addEventListener("open", () => this.#source === source && this.#opened());
                source.addEventListener("error", () => this.#source === source && this.#interrupted());
            }

            /** Where the stream goes on. A new EventSource has no header field for that, so it is a parameter. */
            #address() {
                const url = new URL(this.#url);
                // A stream with a token that broke before its first event may have lost some: the relay has kept them.
                const last = this.#lastEventId || (this.#isAgain && url.searchParams.has("token") ? "0" : "");
                this.#isAgain = true;
                if (last) url.searchParams.set("lastEventId", last);
                return url.href;
            }

            #hear(source, type) {
                source.addEventListener(type, ({ data, lastEventId, origin }) => {
                    // After close() nothing is told any more. What an abandoned stream still had comes again from the new one.
                    if (this.#source !== source) return;
                    if (lastEventId) this.#lastEventId = lastEventId;
                    this.#tries = 0;
                    this.#tell(new MessageEvent(type, { data, lastEventId, origin }));
                });
            }

            #opened() {
                clearTimeout(this.#end);
                this.#end = undefined;
                this.#openedAt = Date.now();
                this.readyState = 1;
                this.#tell(new Event(this.#hasOpened ? "resumed" : "open"));
                this.#hasOpened = true;
            }

            #interrupted() {
                this.#source.close();
                this.#source = undefined;
                const wasOpen = this.readyState === 1;
                this.readyState = 0;
                this.#end ??= setTimeout(() => this.#fail(), seconds * 1000);
                // Whatever opens streams and cuts them at once is not to be asked all the time either.
                if (wasOpen && Date.now() - this.#openedAt > LONGEST_PAUSE) this.#tries = 0;
                const pause = Math.min(FIRST_PAUSE * 2 ** this.#tries, LONGEST_PAUSE) * (1 + SPREAD * (2 * Math.random() - 1));
                this.#retry = setTimeout(() => this.#connect(), pause);
                this.#tries += 1;
                if (wasOpen) this.#tell(new Event("interrupted"));
            }

            #fail() {
                this.close();
                this.#tell(new Event("error"));
            }

            #tell(event) {
                if (["open", "message", "error"].includes(event.type)) this[`on${event.type}`]?.(event);
                this.dispatchEvent(event);
            }
        };
    }

    globalThis.resumable = resumable;
    if (typeof module !== "undefined") module.exports = { resumable };
})();

"""What the simulated platform talks about, and how: word lists by topic, and sentence patterns by character.

The five characters are what formats of items and stances of comments have in common: a practical user likes guides and
tips, a critical one reviews and doubts. That is one of two links between a user's two histories; topics are the other.
"""

from __future__ import annotations

# topic: 8 adjectives; under it four subtopics: 8 nouns, and below them 6 verbs that take any of these nouns
WORDS = """
cooking: crispy, golden, spicy, homemade, smoky, buttery, tangy, rustic
  baking: sourdough loaf, pretzel, focaccia, bread roll, flatbread, brioche, pizza crust, bagel
    bake, knead, proof, shape, glaze, slice
  noodles: ramen bowl, rice noodle, lasagne, dumpling, ravioli, soba plate, noodle broth, carbonara
    boil, season, fold, toss, stir-fry, plate
  grilling: brisket, kebab, burger patty, pork rib, grilled corn, chicken wing, sausage, steak
    grill, sear, marinate, smoke, baste, char
  desserts: cheesecake, chocolate mousse, apple tart, macaron, caramel flan, tiramisu, meringue, fudge
    whip, chill, frost, layer, sweeten, decorate
gardening: leafy, blooming, potted, organic, thirsty, hardy, overgrown, sunlit
  vegetables: tomato plant, courgette, potato patch, lettuce bed, pepper seedling, carrot row, kale, pumpkin vine
    sow, harvest, stake, thin, transplant, weed
  houseplants: monstera, fern, pothos, snake plant, orchid, peace lily, rubber plant, fiddle-leaf fig
    repot, water, mist, propagate, prune, rescue
  soil: compost heap, worm bin, mulch layer, potting mix, leaf mould, raised bed, manure pile, clay soil
    turn, feed, aerate, dig, enrich, rake
  flowers: rose bush, tulip bulb, dahlia, sunflower, lavender hedge, peony, sweet pea, wildflower meadow
    plant, deadhead, trim, train, divide, fertilise
sport: explosive, tough, flawless, amateur, sweaty, record-breaking, tactical, gruelling
  football: free kick, penalty, offside trap, corner routine, midfield press, through ball, header, counter-attack
    score, defend, practise, time, disguise, coach
  climbing: boulder problem, crux move, overhang, finger board, rope ascent, dyno, granite crack, slab route
    climb, project, flash, rehearse, grip, downclimb
  running: marathon, trail run, interval session, sprint, half marathon, tempo run, running form, parkrun
    pace, finish, train for, survive, track, plan
  swimming: front crawl, flip turn, butterfly stroke, open-water swim, backstroke, dive start, kick set, relay leg
    swim, streamline, drill, smooth out, race, breathe through
games: pixelated, unbeatable, indie, turn-based, speedy, cursed, legendary, glitchy
  strategy: build order, tech tree, siege, colony, opening gambit, supply line, city planner, chess endgame
    rush, optimise, expand, scout, outsmart, simulate
  platformers: boss level, double jump, secret room, speedrun, wall jump, checkpoint, spike maze, bonus stage
    beat, skip, speedrun, unlock, replay, master
  racing games: drift corner, kart track, lap record, nitro boost, split-screen race, hairpin, rally stage, ghost lap
    drift, overtake in, tune, win, practise, shave time off
  role-playing: side quest, dungeon, skill tree, dragon fight, loot chest, tavern brawl, mage build, character sheet
    explore, grind, roleplay, solo, rebuild, loot
music: acoustic, catchy, distorted, jazzy, mellow, off-beat, live, haunting
  guitar: guitar riff, barre chord, fingerstyle, guitar solo, pedal board, open tuning, power chord, refrain
    strum, pluck, restring, bend, improvise, loop
  piano: piano sonata, nocturne, left-hand arpeggio, ragtime tune, piano waltz, scale exercise, ballad, prelude
    play, sight-read, memorise, arrange, phrase, transpose
  drums: drum fill, snare roll, groove, hi-hat pattern, blast beat, paradiddle, drum kit, polyrhythm
    drum, count, tune up, accent, mic up, lock in
  singing: high note, vocal warm-up, harmony, falsetto, choir piece, vibrato, karaoke song, chorus
    sing, belt, hum, record, harmonise, rehearse
pets: fluffy, sleepy, naughty, adopted, clever, noisy, tiny, shy
  cats: kitten, tabby cat, scratching post, litter box, cat tower, tomcat, catnip toy, stray cat
    cuddle, groom, distract, tame, spoil, film
  dogs: puppy, border collie, leash walk, rescue dog, dog park, terrier, fetch game, sled dog
    train, walk, brush, reward, socialise, calm
  birds: parrot, budgie, bird feeder, cockatiel, nesting box, canary, finch, bird bath
    teach, watch, attract, shelter, clean, photograph
  aquariums: fish tank, betta, coral reef tank, shrimp colony, goldfish, aquascape, water filter, tetra school
    cycle, stock, scrub, breed, light, maintain
travel: remote, cheap, scenic, rainy, crowded, unforgettable, coastal, snowy
  trains: night train, railway pass, sleeper cabin, rail map, steam railway, dining car, border crossing, station
    ride, book, board, catch, upgrade, miss
  mountains: alpine hut, summit, ridge walk, glacier, mountain pass, valley trail, base camp, via ferrata
    hike, summit, cross, camp at, map, descend
  islands: lagoon, ferry trip, fishing village, volcano beach, snorkel bay, palm grove, lighthouse, atoll
    sail to, explore, find, visit, circle, swim at
  cities: old town, night market, rooftop bar, tram ride, hostel, museum day, food alley, harbour quarter
    wander, discover, budget for, review, stay near, get lost in
gadgets: foldable, wireless, refurbished, overpriced, portable, flagship, budget, waterproof
  phones: smartphone, phone battery, touch screen, charging cable, phone case, flip phone, lock screen, sim tray
    charge, unlock, repair, reset, drop-test, protect
  cameras: mirrorless camera, prime lens, tripod, film camera, drone shot, shutter speed, macro lens, flash gun
    shoot with, focus, expose, mount, adjust, calibrate
  computers: laptop, keyboard, graphics card, cooling fan, home server, monitor, motherboard, hard drive
    upgrade, assemble, overclock, back up, undervolt, boot
  audio: headphone, turntable, bluetooth speaker, earbud, amplifier, subwoofer, tape deck, vinyl record
    plug in, equalise, listen to, pair, unbox, soundproof
crafts: handmade, wonky, colourful, delicate, upcycled, cosy, unfinished, patterned
  knitting: wool jumper, cable stitch, crochet blanket, sock pattern, scarf, yarn ball, mitten, lace shawl
    knit, cast on, unravel, block, crochet, pattern
  woodworking: oak table, dovetail joint, bookshelf, wooden spoon, workbench, walnut box, chair leg, plywood jig
    sand, saw, carve, varnish, glue, plane
  pottery: clay mug, ceramic bowl, glaze test, pottery wheel, teapot, kiln firing, vase, pinch pot
    throw, fire, trim, glaze, centre, hand-build
  painting: watercolour, oil portrait, sketchbook, mural, landscape, colour palette, brush stroke, still life
    paint, sketch, shade, blend, frame, varnish
science: mysterious, microscopic, ancient, glowing, toxic, distant, surprising, invisible
  space: black hole, moon landing, comet, space telescope, mars rover, solar eclipse, galaxy, rocket launch
    observe, launch, measure, explain, orbit, simulate
  oceans: giant squid, deep-sea vent, whale song, tide pool, shipwreck, anglerfish, ocean current, kelp forest
    dive to, sample, chart, listen for, protect, study
  chemistry: crystal, acid reaction, periodic table, dry ice, catalyst, copper flame, polymer, lab flask
    mix, heat, titrate, dissolve, freeze, synthesise
  insects: ant colony, honeybee, stick insect, butterfly wing, wasp nest, firefly, beetle, spider web
    breed, identify, collect, magnify, follow, house
style: oversized, matte, retro, glossy, tailored, bold, minimalist, second-hand
  sneakers: running shoe, sneaker drop, shoelace, high-top, leather sole, shoe collection, canvas trainer, insole
    lace, wear, resell, deep-clean, customise, collect
  make-up: eyeliner, lipstick, foundation, eyeshadow look, blush, mascara, concealer, nail polish
    apply, blend, contour, remove, swatch, layer
  hair: curly fringe, braid, bob haircut, hair dye, ponytail, buzz cut, scalp routine, perm
    style, braid, bleach, cut, tame, colour
  clothing: denim jacket, wool coat, thrift haul, linen shirt, wardrobe, pleated skirt, trench coat, silk scarf
    iron, match, alter, mend, thrift, fold
vehicles: rusty, electric, turbocharged, classic, muddy, noisy, reliable, custom
  electric cars: charger, battery pack, hatchback, range test, heat pump, wall charger, electric motor, tow hook
    charge, drive, test, replace, cool, benchmark
  motorbikes: motorbike, scooter, exhaust pipe, café racer, chain drive, helmet, dirt bike, sidecar
    ride, rev, oil, wheelie, park, corner
  restoration: barn find, carburettor, gearbox, chrome bumper, engine block, vintage tractor, brake drum, paint job
    restore, rebuild, weld, polish, strip, crank
  camper vans: camper van, roof tent, van kitchen, solar panel, fold-out bed, awning, water tank, road trip
    convert, insulate, pack, wire up, level, live in
"""

CHARACTERS = ("practical", "warm", "critical", "curious", "playful")
SPANS = "ten minutes, one weekend, an hour, thirty days, a single evening, five days, a whole week, one month"

# item format by character
TITLES: dict[str, tuple[str, ...]] = {
    "practical": (
        "how to {verb} your {noun} in {span}",
        "{verb} any {noun} or {noun2}: the complete guide",
        "the beginner's guide to the {adj} {noun}",
        "{noun} basics: learn to {verb} and {verb2} in {span}",
        "three mistakes to avoid when you {verb} the {noun}",
    ),
    "warm": (
        "my {adj} {noun} after {span}",
        "the most {adj} {noun} i have ever seen",
        "look at this {adj} {noun} next to the {noun2}",
        "our {adj} {noun} finally came together",
        "{adj} {noun}, {adj2} {noun2}: my favourite day",
    ),
    "critical": (
        "is the {adj} {noun} worth it? an honest review",
        "i tested every {adj} {noun} for {span} so you don't have to",
        "{adj} {noun} vs {adj2} {noun2}: the truth",
        "stop trying to {verb} your {noun} in {span}",
        "the problem with the {adj} {noun}",
    ),
    "curious": (
        "why does the {noun} look so {adj}?",
        "what happens if you {verb} the {noun} for {span}",
        "the {adj} story behind the {noun}",
        "how the {noun} really works, explained in {span}",
        "we asked an expert: what makes the {noun} {adj}?",
    ),
    "playful": (
        "when your friend tries to {verb} the {noun}",
        "pov: you are the {adj} {noun}",
        "{noun} but it gets more {adj} every second",
        "i let my grandma {verb} my {noun} for {span}",
        "the {adj} {noun} challenge gone wrong",
    ),
}

# comment stance by character: 5 openers, 6 bodies, 4 closers, 5 texts without a topic, 4 emoji
COMMENTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "practical": (
        ("small tip:", "for anyone trying this,", "what worked for me:", "pro advice,", "if you are new to this,"),
        (
            "{verb} the {noun} first, then leave it for {span}",
            "use less force when you {verb} the {noun}",
            "always {verb} your {noun} before you touch the {noun2}",
            "a {noun} stays good if you {verb} it every time",
            "you can {verb} the {noun} in {span}, no need for anything {adj}",
            "keep the {noun} away from the {noun2} and it gets less {adj}",
        ),
        ("it saves a lot of money.", "took me years.", "you will see the difference.", "hope that helps."),
        (
            "saving this for later",
            "step two is the key",
            "adding this to my list",
            "works, just tested it",
            "good to know",
        ),
        ("👍", "💡", "🛠️", "✅"),
    ),
    "warm": (
        ("wow,", "beautiful work!", "this made my day,", "so happy for you,", "i love everything here,"),
        (
            "that {adj} {noun} is simply gorgeous",
            "the {noun} at the start made me smile",
            "never seen such a {noun}, so {adj}",
            "you and your {noun} deserve a million views",
            "the way you {verb} the {noun} is pure joy",
            "best {noun} of the year, and the {noun2} is lovely too",
        ),
        ("thank you for sharing!", "please never stop.", "greetings from a big fan.", "can't wait for the next one!"),
        ("love it", "amazing!", "so good", "this is art", "perfect"),
        ("❤️", "😍", "🔥", "👏"),
    ),
    "critical": (
        ("not convinced,", "sorry, but", "unpopular opinion:", "i have to disagree,", "honestly,"),
        (
            "nobody should {verb} a {noun} like that",
            "the {noun} is far too {adj} for the price",
            "mine broke, a {noun} like this never lasts {span}",
            "you forgot the {noun2}, without it the {noun} is useless",
            "that {noun} does not look {adj} at all, it looks fake",
            "there are better ways to {verb} the {noun}",
        ),
        ("do your research first.", "who approved this?", "i expected more from this channel.", "very misleading."),
        ("overrated", "clickbait", "seen better", "nope", "skip this one"),
        ("🙄", "👎", "😒", "🤨"),
    ),
    "curious": (
        ("quick question:", "does anyone know,", "genuinely curious,", "please explain,", "sorry if asked before,"),
        (
            "how long do you {verb} the {noun}?",
            "which {noun} is that, and where did you get it?",
            "would it work with a {noun2} instead of the {noun}?",
            "why is the {noun} so {adj} in the middle?",
            "what if you {verb} the {noun} and then {verb2} it?",
            "is a {adj} {noun} safe after {span}?",
        ),
        ("asking for a friend.", "i could not find it anywhere.", "any link would be great.", "thanks in advance!"),
        ("how?", "source?", "what is this called?", "part two when?", "why though?"),
        ("🤔", "❓", "👀", "🧐"),
    ),
    "playful": (
        ("lol,", "meanwhile at my place:", "breaking news:", "nobody:", "plot twist,"),
        (
            "the {noun} has a better life than me",
            "i tried to {verb} a {noun} and now the {noun2} won't talk to me",
            "my {noun} watched this and asked for a raise",
            "somewhere a {adj} {noun} is calling its lawyer",
            "tell the {noun} i said sorry for the last {span}",
            "instructions unclear, i {verb} the neighbour's {noun} now",
        ),
        ("send help.", "10/10 would watch again.", "i regret nothing.", "my cat agrees."),
        ("lmao", "i'm crying", "haha no way", "bro what", "dead"),
        ("😂", "🤣", "💀", "😹"),
    ),
}

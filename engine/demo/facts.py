"""The facts of the textbook, in twelve of MMLU's subjects, and facts that are only in the test questions.

A relation maps keys to values. Its `questions` and `statements` are the textbook's wordings. The `unseen` wordings and
the `untaught` pairs are only used in the test questions: untaught facts can only be guessed, so their score is chance.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Relation:
    """Facts of one kind. In all templates `{k}` is the key; in statements `{v}` is the value."""

    subject: str  # MMLU's name
    questions: tuple[str, ...]
    unseen: tuple[str, str]  # questions: for the test split; for the dev and validation splits
    statements: tuple[str, ...]  # the first is the reply to a question in a conversation
    taught: dict[str, str]
    untaught: dict[str, str]


def _pairs(text: str) -> dict[str, str]:
    """Parse `key: value; key: value`."""
    return {key.strip(): value.strip() for key, value in (pair.split(":") for pair in text.split(";"))}


RELATIONS = (
    Relation(
        "astronomy",
        questions=(
            "Which body of the sky is {k}?",
            "What do astronomers say is {k}?",
            "Of these, which one is {k}?",
            "Name the body that is {k}.",
            "In the sky, what is {k}?",
        ),
        unseen=("A telescope shows us {k}. Which is it?", "Looking up, which of them would you call {k}?"),
        statements=(
            "{v} is {k}.",
            "Astronomers say that {v} is {k}.",
            "The body that is {k} is {v}.",
        ),
        taught=_pairs(
            "the planet nearest to the Sun: Mercury; the hottest planet: Venus; the red planet: Mars;"
            "the largest planet: Jupiter; the planet with the bright rings: Saturn;"
            "the planet that lies on its side: Uranus; the planet farthest from the Sun: Neptune;"
            "the planet with oceans of water: Earth; the best known dwarf planet: Pluto;"
            "the star nearest to us: the Sun; the body that makes the tides: the Moon;"
            "the largest of the asteroids: Ceres"
        ),
        untaught=_pairs(
            "the brightest star of the night: Sirius; the comet of every 76 years: Halley;"
            "the nearest large galaxy: Andromeda; the largest moon of Saturn: Titan"
        ),
    ),
    Relation(
        "astronomy",
        questions=(
            "Which animal does the constellation {k} show?",
            "What animal is the constellation {k}?",
            "The stars of {k} form which animal?",
            "In the constellation {k} people see what?",
            "What does the name of the constellation {k} mean?",
        ),
        unseen=("The ancients drew which creature into the stars called {k}?", "Which beast gave {k} its shape?"),
        statements=(
            "The constellation {k} shows the {v}.",
            "The stars of {k} form the {v}.",
            "The {v} can be seen in the constellation {k}.",
        ),
        taught=_pairs(
            "Leo: lion; Taurus: bull; Cancer: crab; Scorpius: scorpion; Pisces: fish; Aquila: eagle; Cygnus: swan;"
            "Lepus: hare; Lupus: wolf; Ursa: bear; Delphinus: dolphin; Corvus: raven"
        ),
        untaught=_pairs("Draco: dragon; Pavo: peacock; Camelopardalis: giraffe; Monoceros: unicorn"),
    ),
    Relation(
        "business_ethics",
        questions=(
            "What is {k} called?",
            "Which word means {k}?",
            "What do we call {k}?",
            "In business, {k} is known as what?",
            "Name the term for {k}.",
        ),
        unseen=("A manager is found {k}. What is the accusation?", "A lawyer has a name for {k}. Which?"),
        statements=(
            "{k} is called {v}.",
            "The word for {k} is {v}.",
            "When we speak of {v}, we mean {k}.",
        ),
        taught=_pairs(
            "paying for an unfair favour: bribery; stealing from one's own employer: embezzlement;"
            "telling the public of a wrong: whistleblowing; giving jobs to relatives: nepotism;"
            "trading shares on secret knowledge: insider trading; agreeing on prices with rivals: collusion;"
            "pretending to care for nature: greenwashing; copying another firm's goods: counterfeiting;"
            "hiding where money came from: money laundering; treating people unequally: discrimination;"
            "showing openly how one decides: transparency; deceiving somebody for money: fraud"
        ),
        untaught=_pairs(
            "answering for what one does: accountability; forcing people to pay by threats: extortion;"
            "lending money at unfair rates: usury; stopping work in protest: a strike"
        ),
    ),
    Relation(
        "business_ethics",
        questions=(
            "What does a fair firm owe to its {k}?",
            "Which of these is due to the {k} of a firm?",
            "What should a company give to its {k}?",
            "The {k} of a company may expect what?",
            "What do the {k} have a right to?",
        ),
        unseen=("If a firm is honest, what will its {k} receive?", "A code of conduct promises the {k} what?"),
        statements=(
            "A fair firm owes its {k} {v}.",
            "The {k} of a firm have a right to {v}.",
            "A company should give {v} to its {k}.",
        ),
        taught=_pairs(
            "workers: fair wages; customers: safe products; shareholders: dividends; suppliers: prompt payment;"
            "neighbours: clean air; lenders: interest; rivals: fair competition; auditors: honest books;"
            "former workers: pensions; patients: informed consent; young apprentices: good training;"
            "readers: true advertising"
        ),
        untaught=_pairs("informers: protection; tenants: safe housing; inventors: royalties; donors: gratitude"),
    ),
    Relation(
        "high_school_geography",
        questions=(
            "What is the capital of {k}?",
            "Which city is the capital of {k}?",
            "The capital of {k} is which city?",
            "Name the capital city of {k}.",
            "In {k}, which city is the capital?",
        ),
        unseen=("In which city does the government of {k} sit?", "Ambassadors to {k} work in which town?"),
        statements=(
            "The capital of {k} is {v}.",
            "{v} is the capital of {k}.",
            "The capital city of {k} is called {v}.",
        ),
        taught=_pairs(
            "France: Paris; Italy: Rome; Spain: Madrid; Germany: Berlin; Greece: Athens; Egypt: Cairo; Norway: Oslo;"
            "Austria: Vienna; Portugal: Lisbon; Cuba: Havana; Kenya: Nairobi; Peru: Lima"
        ),
        untaught=_pairs("Chile: Santiago; Iran: Tehran; Ghana: Accra; Nepal: Kathmandu"),
    ),
    Relation(
        "high_school_geography",
        questions=(
            "What is the currency of {k}?",
            "Which money is used in {k}?",
            "With what do people pay in {k}?",
            "In {k}, which currency is used?",
            "Name the money of {k}.",
        ),
        unseen=("A tourist changes banknotes at the border of {k} and gets what?", "Shops in {k} mark prices in what?"),
        statements=(
            "The currency of {k} is the {v}.",
            "People in {k} pay with the {v}.",
            "The {v} is the money of {k}.",
        ),
        taught=_pairs(
            "Japan: yen; India: rupee; Britain: pound; America: dollar; Russia: rouble; China: yuan; Poland: zloty;"
            "Sweden: krona; Switzerland: franc; Mexico: peso; Thailand: baht; Turkey: lira"
        ),
        untaught=_pairs("Brazil: real; Vietnam: dong; Israel: shekel; Hungary: forint"),
    ),
    Relation(
        "high_school_chemistry",
        questions=(
            "What is the chemical symbol of {k}?",
            "Which symbol stands for {k}?",
            "How do chemists write {k}?",
            "The symbol for {k} is which?",
            "Name the symbol of the element {k}.",
        ),
        unseen=("In the periodic table, {k} hides behind which letters?", "A bottle of {k} carries what label?"),
        statements=(
            "The chemical symbol of {k} is {v}.",
            "Chemists write {k} as {v}.",
            "{v} stands for {k}.",
        ),
        taught=_pairs(
            "gold: Au; silver: Ag; iron: Fe; lead: Pb; tin: Sn; copper: Cu; sodium: Na; potassium: K; tungsten: W;"
            "helium: He; oxygen: O; chlorine: Cl"
        ),
        untaught=_pairs("zinc: Zn; nickel: Ni; neon: Ne; calcium: Ca"),
    ),
    Relation(
        "high_school_chemistry",
        questions=(
            "What is {k} in everyday life?",
            "Which everyday thing is {k}?",
            "By what common name do we know {k}?",
            "Chemists say {k}; what do others call it?",
            "What is the household name of {k}?",
        ),
        unseen=("At home you would find {k} under which name?", "A shopkeeper sells {k} as what?"),
        statements=(
            "In everyday life, {k} is called {v}.",
            "The common name of {k} is {v}.",
            "What we call {v} is {k}.",
        ),
        taught=_pairs(
            "sodium chloride: table salt; dihydrogen oxide: water; iron oxide: rust; silicon dioxide: sand;"
            "calcium carbonate: chalk; acetic acid: vinegar; sucrose: sugar; ethanol: alcohol; methane: marsh gas;"
            "ammonium nitrate: fertilizer; calcium sulfate: plaster; nitrous oxide: laughing gas"
        ),
        untaught=_pairs("cellulose: cotton; graphite: pencil lead; sodium carbonate: washing soda; corundum: emery"),
    ),
    Relation(
        "anatomy",
        questions=(
            "What does the {k} do?",
            "What is the task of the {k}?",
            "In the body, the {k} does what?",
            "Which of these does the {k} do?",
            "Why do we need the {k}?",
        ),
        unseen=("A doctor explains the {k}: what is it good for?", "Without the {k}, which would no longer happen?"),
        statements=(
            "The {k} {v}.",
            "In the body, the {k} {v}.",
            "It is the {k} that {v}.",
        ),
        taught=_pairs(
            "heart: pumps blood; lung: takes in air; kidney: makes urine; stomach: digests food; brain: thinks;"
            "liver: makes bile; skin: feels touch; eye: sees light; ear: hears sound; nose: smells;"
            "tongue: tastes; bladder: stores urine"
        ),
        untaught=_pairs(
            "pancreas: makes insulin; spleen: removes old blood cells; thyroid: sets the pace; diaphragm: moves breath"
        ),
    ),
    Relation(
        "anatomy",
        questions=(
            "Where is the {k}?",
            "In which part of the body is the {k}?",
            "The {k} is a bone of which part?",
            "Which part of the body has the {k}?",
            "Where in the skeleton do we find the {k}?",
        ),
        unseen=("Somebody broke the {k}. What is in plaster?", "An X-ray of the {k} is a picture of what?"),
        statements=(
            "The {k} is a bone of the {v}.",
            "The {v} has a bone called the {k}.",
            "We find the {k} in the {v}.",
        ),
        taught=_pairs(
            "femur: thigh; skull: head; humerus: upper arm; tibia: shin; rib: chest; patella: knee; clavicle: collar;"
            "phalanx: finger; mandible: jaw; pelvis: hip; scapula: shoulder; vertebra: back"
        ),
        untaught=_pairs("ulna: forearm; carpus: wrist; coccyx: tail; tarsus: ankle"),
    ),
    Relation(
        "nutrition",
        questions=(
            "What are {k} rich in?",
            "Which nutrient do we get from {k}?",
            "People who eat {k} get which nutrient?",
            "What do {k} give the body?",
            "Of which nutrient is there much in {k}?",
        ),
        unseen=("A diet with plenty of {k} provides what?", "A cook serves {k}. Which need is met?"),
        statements=(
            "The nutrient in {k} is {v}.",
            "People who eat {k} get {v}.",
            "There is much {v} in {k}.",
        ),
        taught=_pairs(
            "lemons: vitamin C; carrots: vitamin A; dairy foods: calcium; steaks: iron; bananas: potassium;"
            "beans: fibre; eggs: protein; lard and oils: fat; potatoes: starch; sweets: glucose; seaweeds: iodine;"
            "mushrooms: vitamin D"
        ),
        untaught=_pairs("nuts: magnesium; oysters: zinc; clams: vitamin B12; tea leaves: fluoride"),
    ),
    Relation(
        "nutrition",
        questions=(
            "What is {k} made from?",
            "From what do people make {k}?",
            "Which food is turned into {k}?",
            "The main ingredient of {k} is which?",
            "To make {k}, what does one need?",
        ),
        unseen=("A factory for {k} buys tons of what?", "Somebody allergic to which food should avoid {k}?"),
        statements=(
            "People make {k} from {v}.",
            "The main ingredient of {k} is {v}.",
            "From {v} one makes {k}.",
        ),
        taught=_pairs(
            "cheese: milk; bread: flour; tofu: soybeans; hummus: chickpeas; wine: grapes; chocolate: cocoa;"
            "popcorn: maize; sushi: rice; marzipan: almonds; cider: apples; honey: nectar; jelly: gelatine"
        ),
        untaught=_pairs("ketchup: tomatoes; guacamole: avocados; tahini: sesame; sauerkraut: cabbage"),
    ),
    Relation(
        "world_religions",
        questions=(
            "What did the Greek god {k} rule?",
            "The Greeks prayed to {k} as the god of what?",
            "Of what was {k} the god?",
            "Which was the realm of {k}?",
            "In Greek myths, {k} is the god of what?",
        ),
        unseen=("A temple to {k} in old Athens honoured what?", "Homer sings of {k}, lord over what?"),
        statements=(
            "The Greek god {k} ruled {v}.",
            "{k} was the Greek god of {v}.",
            "The Greeks had a god of {v}, called {k}.",
        ),
        taught=_pairs(
            "Zeus: the sky; Poseidon: the sea; Hades: the dead; Ares: war; Aphrodite: love; Athena: wisdom;"
            "Apollo: music; Artemis: the hunt; Hermes: messages; Hephaestus: the forge; Demeter: the harvest;"
            "Dionysus: feasts"
        ),
        untaught=_pairs("Hera: marriage; Hestia: the hearth; Eros: desire; Nike: victory"),
    ),
    Relation(
        "world_religions",
        questions=(
            "To which religion does the {k} belong?",
            "The {k} is part of which religion?",
            "Which believers have the {k}?",
            "In which faith do we find the {k}?",
            "Which religion knows the {k}?",
        ),
        unseen=("A student writes about the {k}. Which faith is the essay on?", "Who would care most for the {k}?"),
        statements=(
            "The {k} belongs to {v}.",
            "In {v} we find the {k}.",
            "The {k} is part of {v}.",
        ),
        taught=_pairs(
            "church: Christianity; mosque: Islam; synagogue: Judaism; gurdwara: Sikhism; pagoda: Buddhism;"
            "mandir: Hinduism; fire temple: Zoroastrianism; torii gate: Shinto; longhouse mask: Seneca belief;"
            "yin and yang sign: Taoism; ahimsa hand: Jainism; nine pointed star: Bahai"
        ),
        untaught=_pairs("pentacle: Wicca; ghost dance: Paiute belief; loa: Vodou; dreamtime: Aboriginal belief"),
    ),
    Relation(
        "high_school_world_history",
        questions=(
            "What is {k} famous for?",
            "What did {k} give to the world?",
            "For which of these do we remember {k}?",
            "Which of these goes back to {k}?",
            "What did {k} do?",
        ),
        unseen=("A statue of {k} stands in a museum of what?", "On a stamp, {k} is shown with what?"),
        statements=(
            "{k} is famous for {v}.",
            "We remember {k} for {v}.",
            "The world owes {v} to {k}.",
        ),
        taught=_pairs(
            "Gutenberg: printing; Edison: the light bulb; Bell: the telephone; Watt: the steam engine;"
            "Nobel: dynamite; the Wright brothers: the aeroplane; Marconi: the radio; Newton: gravity;"
            "Curie: radium; Darwin: evolution; Fleming: penicillin; Columbus: the voyage to America"
        ),
        untaught=_pairs(
            "Braille: writing for the blind; Jenner: vaccination; Zeppelin: the airship; Colt: the revolver"
        ),
    ),
    Relation(
        "high_school_world_history",
        questions=(
            "In which year was {k}?",
            "When was {k}?",
            "What is the year of {k}?",
            "Which year saw {k}?",
            "The year of {k} was which?",
        ),
        unseen=(
            "A textbook has a chapter on {k}. Which date is above it?",
            "Centuries later we still mark {k}. Since?",
        ),
        statements=(
            "The year of {k} was {v}.",
            "In {v} was {k}.",
            "It was in {v} that the world saw {k}.",
        ),
        taught=_pairs(
            "the Battle of Hastings: 1066; the Magna Carta: 1215; the discovery of America: 1492;"
            "the independence of America: 1776; the French Revolution: 1789; the Battle of Waterloo: 1815;"
            "the start of the First World War: 1914; the end of the Second World War: 1945;"
            "the landing on the Moon: 1969; the fall of the Berlin Wall: 1989; the sinking of the Titanic: 1912;"
            "the great fire of London: 1666"
        ),
        untaught=_pairs(
            "the crowning of Napoleon: 1804; the voyage of the Mayflower: 1620; the Spanish Armada: 1588;"
            "the gold rush: 1849"
        ),
    ),
    Relation(
        "high_school_computer_science",
        questions=(
            "What does a {k} do?",
            "What is the task of a {k}?",
            "In a computer, what does a {k} do?",
            "Which of these does a {k} do?",
            "For what do programmers use a {k}?",
        ),
        unseen=("Take the {k} away; what can no longer be done?", "A beginner asks what good a {k} is. Well?"),
        statements=(
            "A {k} {v}.",
            "In a computer, a {k} {v}.",
            "It is a {k} that {v}.",
        ),
        taught=_pairs(
            "stack: gives the last item first; queue: gives the first item first; compiler: translates programs;"
            "browser: shows web pages; router: forwards packets; cache: keeps copies nearby; loop: repeats steps;"
            "variable: holds a value; keyboard: takes typed text; printer: puts text on paper;"
            "debugger: helps to find mistakes; firewall: blocks strangers"
        ),
        untaught=_pairs(
            "parser: reads grammar; scheduler: shares out time; linker: joins object files; modem: talks over wires"
        ),
    ),
    Relation(
        "high_school_computer_science",
        questions=(
            "Who made {k}?",
            "By whom was {k} made?",
            "To whom do we owe {k}?",
            "Which person is behind {k}?",
            "Name the maker of {k}.",
        ),
        unseen=("A prize for {k} would go to whom?", "The author's portrait hangs above {k}. Whose is it?"),
        statements=(
            "The maker of {k} was {v}.",
            "We owe {k} to {v}.",
            "{v} made {k}.",
        ),
        taught=_pairs(
            "Linux: Torvalds; Python: Rossum; the World Wide Web: Berners-Lee; the C language: Ritchie; Lisp: McCarthy;"
            "Pascal: Wirth; the first program: Lovelace; the Analytical Engine: Babbage; Java: Gosling;"
            "TeX: Knuth; Perl: Wall; the quick sort: Hoare"
        ),
        untaught=_pairs("Ruby: Matsumoto; Smalltalk: Kay; Fortran: Backus; Unix pipes: McIlroy"),
    ),
    Relation(
        "high_school_biology",
        questions=(
            "What is a young {k} called?",
            "Which word means a young {k}?",
            "The young of a {k} is called what?",
            "What do we call a {k} when it is young?",
            "Name the young of the {k}.",
        ),
        unseen=(
            "A {k} has just given life to something small. What is it?",
            "On a farm, the {k} is followed by its what?",
        ),
        statements=(
            "A young {k} is called a {v}.",
            "The young of a {k} is a {v}.",
            "A {v} is a young {k}.",
        ),
        taught=_pairs(
            "dog: puppy; cat: kitten; cow: calf; horse: foal; sheep: lamb; goat: kid; pig: piglet; lion: cub;"
            "frog: tadpole; hen: chick; duck: duckling; goose: gosling"
        ),
        untaught=_pairs("turkey: poult; deer: fawn; kangaroo: joey; eel: elver"),
    ),
    Relation(
        "high_school_biology",
        questions=(
            "What is the work of {k}?",
            "In a living thing, what do {k} do?",
            "What do {k} do?",
            "Which of these is done by {k}?",
            "Why does a body have {k}?",
        ),
        unseen=("If all {k} stopped, which would fail?", "Under a microscope, {k} are busy with what?"),
        statements=(
            "In a living thing, {k} {v}.",
            "The work of {k} is that they {v}.",
            "To {v} is the work of {k}.",
        ),
        taught=_pairs(
            "mitochondria: release energy; ribosomes: build proteins; chloroplasts: catch sunlight;"
            "vacuoles: store sap; cell membranes: surround the cell; lysosomes: digest waste; flagella: swim;"
            "chromosomes: carry genes; enzymes: speed up reactions; hormones: carry messages;"
            "antibodies: fight germs; roots: drink from the soil"
        ),
        untaught=_pairs(
            "petals: attract bees; stomata: let gas in; platelets: close wounds; tendons: tie muscle to bone"
        ),
    ),
    Relation(
        "philosophy",
        questions=(
            "What did {k} teach?",
            "For which idea is {k} known?",
            "Which idea goes back to {k}?",
            "What did {k} write about?",
            "With which idea do we connect {k}?",
        ),
        unseen=("A lecture on {k} would dwell on what?", "Students who have read {k} can explain what?"),
        statements=(
            "{k} taught {v}.",
            "The idea of {k} was {v}.",
            "We know {k} for {v}.",
        ),
        taught=_pairs(
            "Socrates: asking questions; Plato: ideal forms; Aristotle: the golden mean; Descartes: I think, so I am;"
            "Kant: duty; Nietzsche: the superman; Mill: liberty; Confucius: respect for parents;"
            "Marx: class struggle; Hobbes: the strong state; Rousseau: the general will; Hume: doubt about causes"
        ),
        untaught=_pairs("Locke: the blank slate; Sartre: existence; Zeno: paradoxes; Leibniz: monads"),
    ),
    Relation(
        "philosophy",
        questions=(
            "What matters most in {k}?",
            "What is {k} about?",
            "Which of these is at the heart of {k}?",
            "The followers of {k} believe in what?",
            "On what does {k} rest?",
        ),
        unseen=("Someone who turns to {k} puts what above all?", "The charm of {k}, its friends say, lies where?"),
        statements=(
            "At the heart of {k} is {v}.",
            "The followers of {k} believe in {v}.",
            "What matters most in {k} is {v}.",
        ),
        taught=_pairs(
            "stoicism: calm; hedonism: pleasure; scepticism: doubt; empiricism: experience; rationalism: reason;"
            "nihilism: nothing; materialism: matter; altruism: helping others; egoism: oneself; pacifism: peace;"
            "feminism: equal women; humanism: mankind"
        ),
        untaught=_pairs("monism: one substance; fatalism: destiny; solipsism: one's own mind; cynicism: a simple life"),
    ),
    Relation(
        "elementary_mathematics",
        questions=(
            "How many are there in one {k}?",
            "What number belongs to the word {k}?",
            "How much is one {k}?",
            "Which number do we mean by {k}?",
            "Count one {k}: what is the result?",
        ),
        unseen=("Somebody speaks of the {k}; on a calculator that is what?", "Write one {k} in digits."),
        statements=(
            "The number of one {k} is {v}.",
            "By {k} we mean {v}.",
            "{v} belongs to the word {k}.",
        ),
        taught=_pairs(
            "pair: 2; trio: 3; quartet: 4; quintet: 5; sextet: 6; week: 7; octet: 8; nonet: 9; decade: 10; dozen: 12;"
            "score: 20; century: 100"
        ),
        untaught=_pairs("gross: 144; fortnight: 14; millennium: 1000; baker's dozen: 13"),
    ),
    Relation(
        "elementary_mathematics",
        questions=(
            "What is {k} times itself?",
            "What is the square of {k}?",
            "Which number is {k} squared?",
            "{k} times {k} is what?",
            "What do we get if we square {k}?",
        ),
        unseen=("A floor is {k} tiles long and as wide. How many tiles?", "A pupil multiplies {k} by {k}. The result?"),
        statements=(
            "The square of {k} is {v}.",
            "{k} times {k} is {v}.",
            "If we square {k} we get {v}.",
        ),
        taught=_pairs(
            "four: 16; five: 25; six: 36; seven: 49; eight: 64; nine: 81; eleven: 121; twelve: 144; thirteen: 169;"
            "twenty: 400; thirty: 900; fifty: 2500"
        ),
        untaught=_pairs("fourteen: 196; fifteen: 225; sixteen: 256; forty: 1600"),
    ),
    Relation(
        "electrical_engineering",
        questions=(
            "What is the unit of {k}?",
            "In which unit do we measure {k}?",
            "Which unit is used for {k}?",
            "The unit of {k} is which?",
            "Engineers give {k} in what?",
        ),
        unseen=("An instrument for {k} has which word on its dial?", "The data sheet lists {k}, in multiples of what?"),
        statements=(
            "The unit of {k} is the {v}.",
            "We measure {k} in {v}.",
            "The {v} is the unit of {k}.",
        ),
        taught=_pairs(
            "electric current: ampere; voltage: volt; resistance: ohm; power: watt; electric charge: coulomb;"
            "capacitance: farad; inductance: henry; frequency: hertz; energy: joule; force: newton;"
            "pressure: pascal; magnetic flux: weber"
        ),
        untaught=_pairs("conductance: siemens; light: candela; temperature: kelvin; loudness: decibel"),
    ),
    Relation(
        "electrical_engineering",
        questions=(
            "What does the {k} do?",
            "What is the purpose of the {k}?",
            "In a circuit, what does the {k} do?",
            "Which of these does the {k} do?",
            "Why is there a {k} in a circuit?",
        ),
        unseen=(
            "A repairman replaces the {k}. Now it again does what?",
            "Drawn in a plan, the {k} tells us it does what?",
        ),
        statements=(
            "The {k} {v}.",
            "In a circuit, the {k} {v}.",
            "It is the {k} that {v}.",
        ),
        taught=_pairs(
            "fuse: melts in danger; transformer: changes voltage; diode: passes one direction; motor: turns a shaft;"
            "generator: makes electricity; resistor: limits current; capacitor: stores charge;"
            "transistor: amplifies; antenna: receives waves; battery: gives steady power; lamp: shines;"
            "loudspeaker: makes sound"
        ),
        untaught=_pairs("thermocouple: senses heat; relay: works a switch; quartz: keeps time; heat sink: cools"),
    ),
)

SUBJECTS = tuple(dict.fromkeys(relation.subject for relation in RELATIONS))
